"""Text is read and written as UTF-8, whatever the locale: every call says so."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
OTHER_OPEN = {"Image", "os", "tarfile", "zipfile"}  # their `open` reads no text


def without_encoding(source: str) -> Iterator[int]:
    """Lines of the calls that read or write text in the encoding of the locale."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or any(keyword.arg == "encoding" for keyword in call.keywords):
            continue
        match call.func:
            case ast.Attribute(attr="read_text" | "write_text"):
                yield call.lineno
            case ast.Attribute(value=ast.Name(id=module), attr="open") if module in OTHER_OPEN:
                pass
            case ast.Attribute(attr="open") | ast.Name(id="open"):
                values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
                if not any(isinstance(v, ast.Constant) and str(v.value).endswith("b") for v in values):
                    yield call.lineno


def test_every_text_file_is_utf_8():
    files = [file for folder in ("simplear_rl", "actors") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = [f"{file}:{line}" for file in files for line in without_encoding(file.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("a.read_text()\nb.write_text(c)", [1, 2]),
        ("open(a)\nwith open(b, 'w') as f: pass\na.open(mode='a')", [1, 2, 3]),
        ("a.read_text(encoding='utf-8')\nopen(a, encoding='utf-8')", []),
        ("open(a, 'rb')\na.open('wb')\nopen(a, mode='xb')\nImage.open(a)\nread_text(a)", []),
    ],
)
def test_the_search_finds_what_it_is_for(source, lines):
    assert sorted(without_encoding(source)) == lines


PROMPTS = """
import locale, sys
from pathlib import Path
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.files import write_text

assert locale.getencoding() not in ("UTF-8", "utf-8"), locale.getencoding()
folder = Path(sys.argv[1])
config = load_config(SupervisedConfig, folder / "config.yaml", [])
write_text(folder / "written.txt", config.sample_prompts[0])
"""


def test_a_configuration_is_read_and_written_in_another_locale(tmp_path):
    prompt = "ein großer Würfel, 赤い円, 🟢"
    text = (ROOT / "configs" / "shapes" / "pretrain.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text) | {"sample_prompts": [prompt]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    # Python takes C for C.UTF-8 unless it is told not to.
    other = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", PROMPTS, tmp_path], env=other, check=True)
    assert (tmp_path / "written.txt").read_bytes() == prompt.encode()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_locale_lacks_is_printed_escaped(encoding):
    """Of a path, a byte that is not UTF-8 as well."""
    command = r"from simplear_rl.cli import exit_on_user_error as run; run('x', lambda: print('\u732b \udcff done'))"
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", command], env=env, check=True, capture_output=True).stdout
    assert shown.decode(encoding).strip() == ("\u732b" if encoding == "utf-8" else "\\u732b") + " \\udcff done"
