"use strict";
// Charts of a report as SVG, with the values under the pointer. Colours of Okabe and Ito, which colour-blind people tell
// apart, and a pattern of dashes beside them.
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a6d3b"];
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];
const HEIGHT = 190, LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 24;
const hover = document.getElementById("hover");
const colour = i => COLOURS[i % COLOURS.length];
// Where the colours begin again, the dashes are others.
const dash = i => DASHES[(i + Math.floor(i / COLOURS.length)) % DASHES.length];
// Of a run, its place among those of its kind.
const place = i => data.runs.slice(0, i).filter(run => run.kind === data.runs[i].kind).length;
let axis = null;
try { axis = sessionStorage.getItem("axis"); } catch { /* a browser may keep nothing for this page */ }

function keep(chosen) {
  try { sessionStorage.setItem("axis", chosen); } catch { /* then it is chosen again */ }
}

function node(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function exact(value) {
  return value === null || value === undefined ? "none" : String(Number(Number(value).toPrecision(7)));
}

function brief(value) {
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  return size >= 1000 ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function ticks(low, high, number) {
  const raw = (high - low) / number, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(f => f * power >= raw) * power, found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + step * 1e-9; i++) found.push(i * step);
  return found;
}

// An empty chart with its two scales.
function frame(figure, xs, ys, names) {
  figure.querySelector("svg")?.remove();
  const width = Math.max(220, figure.clientWidth);
  const svg = node("svg", {viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img"}, figure);
  let [low, high] = ys, [first, last] = xs;
  if (low === high) { const pad = Math.abs(low) / 10 || 1; low -= pad; high += pad; }
  if (first === last) { first -= 0.5; last += 0.5; }
  const x = v => LEFT + (v - first) / (last - first) * (width - LEFT - RIGHT);
  const y = v => HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
  for (const t of ticks(low, high, 4)) {
    node("line", {x1: LEFT, x2: width - RIGHT, y1: y(t), y2: y(t), stroke: "#e5e5e5"}, svg);
    node("text", {x: LEFT - 5, y: y(t) + 4, "text-anchor": "end"}, svg, brief(t));
  }
  if (!names) for (const t of ticks(first, last, Math.max(2, Math.floor(width / 90))))
    node("text", {x: x(t), y: HEIGHT - 8, "text-anchor": x(t) > width - 30 ? "end" : "middle"}, svg, brief(t));
  node("line", {x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, stroke: "#999"}, svg);
  return {svg, x, y, width, first, last};
}

function show(event, lines) {
  hover.replaceChildren();
  lines.forEach((line, i) => {
    const row = document.createElement("div"), [text, value, shade] = [].concat(line);
    row.textContent = value === undefined ? text : text + " ";
    if (shade) row.style.borderLeft = `4px solid ${shade}`, row.style.paddingLeft = "4px";
    if (value !== undefined) row.append(Object.assign(document.createElement("b"), {textContent: value}));
    hover.append(row);
  });
  const box = hover.getBoundingClientRect();
  hover.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 6)) + "px";
  hover.style.top = Math.max(4, event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 12
    : event.clientY + 16) + "px";
}

// Calls `lines(value on the x axis)` for what is shown beside the pointer, and marks the place that it returns.
function track(plot, lines) {
  const mark = node("line", {y1: TOP, y2: HEIGHT - BOTTOM, stroke: "#333", visibility: "hidden"}, plot.svg);
  const move = event => {
    const box = plot.svg.getBoundingClientRect(), at = (event.clientX - box.left) * plot.width / box.width;
    const found = lines(plot.first + (at - LEFT) / (plot.width - LEFT - RIGHT) * (plot.last - plot.first));
    if (!found) return;
    mark.setAttribute("x1", plot.x(found.x)); mark.setAttribute("x2", plot.x(found.x));
    mark.setAttribute("visibility", "visible");
    show(event, found.lines);
  };
  const leave = () => { mark.setAttribute("visibility", "hidden"); hover.replaceChildren(); };
  plot.svg.addEventListener("pointermove", move);
  plot.svg.addEventListener("pointerdown", move);
  plot.svg.addEventListener("pointerleave", leave);
}

function nearest(values, x, known) {
  let best = -1;
  for (let i = 0; i < values.length; i++)
    if (known(i) && (best < 0 || Math.abs(values[i] - x) < Math.abs(values[best] - x))) best = i;
  return best;
}

function drawCurve(figure) {
  const [kind, metric] = figure.dataset.name.split(/\/(.*)/s);
  const shown = data.runs.map((run, i) => ({run, i, curve: run.curves[metric], x: run.axes[axis]}))
    .filter(s => s.run.kind === kind && s.curve && s.x);
  const ys = shown.flatMap(s => [...(s.curve.low || s.curve.mean), ...(s.curve.high || [])]).filter(v => v !== null);
  if (!ys.length) return;
  const least = (a, b) => Math.min(a, b), most = (a, b) => Math.max(a, b);
  const low = ys.reduce(least), high = ys.reduce(most), pad = (high - low) / 20;
  const xs = data.runs.filter(run => run.kind === kind && run.axes[axis]?.length).flatMap(run => [run.axes[axis][0], run.axes[axis].at(-1)]);
  const plot = frame(figure, [xs.reduce(least), xs.reduce(most)], [low - pad, high + pad]);
  for (const {run, i, curve, x} of shown) {
    const there = x.map((_, k) => k).filter(k => curve.mean[k] !== null);
    const point = (k, values) => `${plot.x(x[k]).toFixed(1)},${plot.y(values[k]).toFixed(1)}`;
    if (curve.low) node("polygon", {fill: colour(i), opacity: 0.18, points: [
      ...there.map(k => point(k, curve.high)), ...there.slice().reverse().map(k => point(k, curve.low))].join(" ")}, plot.svg);
    node("polyline", {fill: "none", stroke: colour(i), "stroke-width": 1.4, "stroke-dasharray": dash(place(i)),
      points: there.map(k => point(k, curve.mean)).join(" ")}, plot.svg);
    if (there.length < 40) for (const k of there)
      node("circle", {cx: plot.x(x[k]), cy: plot.y(curve.mean[k]), r: 2.4, fill: colour(i)}, plot.svg);
    for (const event of run.events) {
      const k = run.axes.steps.findIndex(step => step >= event.step);
      const at = event.step <= 0 ? plot.first : k < 0 ? x.at(-1) : x[k];
      node("line", {x1: plot.x(at), x2: plot.x(at), y1: TOP, y2: HEIGHT - BOTTOM, stroke: colour(i), opacity: 0.6,
        "stroke-dasharray": "2 4"}, plot.svg);
    }
  }
  track(plot, at => {
    const found = shown.map(s => ({...s, k: nearest(s.x, at, k => s.curve.mean[k] !== null)}));
    const lead = found.reduce((a, b) => Math.abs(b.x[b.k] - at) < Math.abs(a.x[a.k] - at) ? b : a);
    const lines = [`${axis} ${exact(lead.x[lead.k])}`];
    for (const {run, i, curve, x, k} of found) {
      const where = x[k] === lead.x[lead.k] ? "" : ` (at ${exact(x[k])})`;
      lines.push([run.name + where, exact(curve.mean[k]), colour(i)]);
      if (curve.low && curve.low[k] !== curve.high[k]) lines.push(["from, to", `${exact(curve.low[k])}, ${exact(curve.high[k])}`, colour(i)]);
      const near = run.events.filter(e => e.step >= (run.axes.steps[k - 1] ?? -1) && e.step < run.axes.steps[k]);
      for (const event of near.slice(0, 3)) lines.push(["after step " + event.step + ": " + event.text.slice(0, 160)]);
    }
    return {x: lead.x[lead.k], lines};
  });
}

function drawPhases(figure) {
  const bars = data.phases[Number(figure.dataset.name)], names = Object.keys(bars.phases), number = bars.from.length;
  if (!number || !names.length) return;
  const sums = bars.from.map((_, k) => names.reduce((sum, name) => sum + bars.phases[name][k], 0));
  const plot = frame(figure, [0, number], [0, Math.max(...sums) * 1.05], true);
  const label = k => bars.from[k] === bars.to[k] ? `step ${bars.from[k]}` : `steps ${bars.from[k]} to ${bars.to[k]}`;
  const gap = number > 30 ? 0.5 : 1.5;
  for (let k = 0; k < number; k++) {
    let below = 0;
    names.forEach((name, i) => {
      const value = bars.phases[name][k];
      node("rect", {x: plot.x(k) + gap, width: Math.max(1, plot.x(k + 1) - plot.x(k) - 2 * gap), y: plot.y(below + value),
        height: Math.max(0, plot.y(below) - plot.y(below + value)), fill: colour(i)}, plot.svg);
      below += value;
    });
  }
  for (const [side, k] of [["start", 0], ["end", number - 1]])
    node("text", {x: side === "start" ? LEFT : plot.width - RIGHT, y: HEIGHT - 8, "text-anchor": side}, plot.svg, label(k));
  key(figure, names.map((name, i) => [name.replaceAll("_", " "), i]), true);
  track(plot, at => {
    const k = Math.min(number - 1, Math.max(0, Math.floor(at)));
    const share = v => sums[k] ? ` s (${(100 * v / sums[k]).toFixed(1)} %)` : " s";
    const rows = names.map((name, i) => [name.replaceAll("_", " "), exact(bars.phases[name][k]) + share(bars.phases[name][k]), colour(i)]);
    return {x: k + 0.5, lines: [label(k), ["all", exact(sums[k]) + " s"], ...rows.reverse()]};
  });
}

function drawHistogram(figure) {
  const {edges, counts} = data.histograms[Number(figure.dataset.name)], names = Object.keys(counts);
  const plot = frame(figure, [edges[0], edges.at(-1)], [0, Math.max(1, ...names.flatMap(name => counts[name])) * 1.05]);
  names.forEach((name, i) => {
    const path = [`${plot.x(edges[0])},${plot.y(0)}`];
    counts[name].forEach((count, k) => path.push(`${plot.x(edges[k])},${plot.y(count)}`, `${plot.x(edges[k + 1])},${plot.y(count)}`));
    path.push(`${plot.x(edges.at(-1))},${plot.y(0)}`);
    node("polygon", {points: path.join(" "), fill: colour(i), "fill-opacity": 0.15, stroke: colour(i), "stroke-dasharray": dash(i)}, plot.svg);
  });
  key(figure, names.map((name, i) => [name, i]), true);
  track(plot, at => {
    const k = Math.min(edges.length - 2, Math.max(0, edges.findIndex(edge => edge > at) - 1));
    return {x: (edges[k] + edges[k + 1]) / 2,
      lines: [`reward ${exact(edges[k])} to ${exact(edges[k + 1])}`, ...names.map((name, i) => [name, counts[name][k], colour(i)])]};
  });
}

function drawScores(figure) {
  const {names, series} = data.scores, every = series.flatMap(s => Object.values(s.intervals).flat().concat(Object.values(s.scores)));
  const plot = frame(figure, [0, names.length], [Math.min(0, ...every), Math.max(...every) * 1.03], true);
  const width = plot.x(1) - plot.x(0);
  names.forEach((name, n) => {
    node("text", {x: plot.x(n + 0.5), y: HEIGHT - 8, "text-anchor": "middle"}, plot.svg,
      name.length * 6.2 > width ? name.slice(0, Math.max(3, Math.floor(width / 6.2) - 1)) + "…" : name);
    series.forEach((s, i) => {
      if (!(name in s.scores)) return;
      const x = plot.x(n + 0.1 + 0.8 * (i + 0.5) / series.length), bounds = s.intervals[name];
      if (bounds) node("line", {x1: x, x2: x, y1: plot.y(bounds[0]), y2: plot.y(bounds[1]), stroke: colour(i), "stroke-width": 2}, plot.svg);
      node("circle", {cx: x, cy: plot.y(s.scores[name]), r: Math.min(4, 1.5 + width / 60), fill: colour(i)}, plot.svg);
    });
  });
  key(figure, series.map((s, i) => [s.name, i]), true);
  track(plot, at => {
    const n = Math.min(names.length - 1, Math.max(0, Math.floor(at))), name = names[n];
    const lines = series.filter(s => name in s.scores).map(s => [s.name, exact(s.scores[name]) +
      (s.intervals[name] ? ` (${exact(s.intervals[name][0])} to ${exact(s.intervals[name][1])})` : ""), colour(series.indexOf(s))]);
    return {x: n + 0.5, lines: [name, ...lines]};
  });
}

// What the colours stand for, above or below a chart.
function key(parent, entries, filled) {
  parent.querySelector(".key")?.remove();
  const list = document.createElement("div");
  list.className = "key quiet";
  for (const [text, i] of entries) {
    const entry = document.createElement("span"), svg = node("svg", {width: 22, height: 10});
    if (filled) node("rect", {width: 12, height: 10, x: 5, fill: colour(i)}, svg);
    else node("line", {x1: 0, x2: 22, y1: 5, y2: 5, stroke: colour(i), "stroke-width": 2.5, "stroke-dasharray": dash(place(i))}, svg);
    entry.append(svg, text);
    list.append(entry);
  }
  parent.append(list);
}

const DRAW = {curve: drawCurve, phases: drawPhases, histogram: drawHistogram, scores: drawScores};
function draw(within) {
  for (const figure of within.querySelectorAll(".chart")) if (figure.clientWidth) DRAW[figure.dataset.chart](figure);
}

const choices = [...document.querySelectorAll("input[name=axis]")];
if (!choices.some(choice => choice.value === axis)) axis = choices[0]?.value;
for (const choice of choices) {
  choice.checked = choice.value === axis;
  choice.addEventListener("change", () => { axis = choice.value; keep(axis); draw(document); });
}
if (data.runs.length > 1) key(document.querySelector("nav"), data.runs.map((run, i) => [run.name, i]), false);
for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", () => draw(details));
for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input"), steps = input.dataset.steps.split(",");
  input.addEventListener("input", () => {
    slider.querySelector("img").src = data.frames[slider.dataset.run][input.value];
    slider.querySelector(".step").textContent = "step " + steps[input.value];
  });
}
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(document); } });
draw(document);
// Not while somebody reads what a reload would close.
const busy = () => document.hidden || hover.children.length || document.querySelector("details[open]");
if ("live" in document.body.dataset) setInterval(() => { if (!busy()) location.reload(); }, 30000);
