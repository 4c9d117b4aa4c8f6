from threading import Thread

from simplear_rl.run.events import read_events, say


def test_lines_of_several_threads_stay_whole(capfd):
    threads = [Thread(target=say, args=[letter * 40] * 5000) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*capfd.readouterr().out.splitlines()} == {"a" * 40, "b" * 40}


def test_lines_that_are_no_events_are_left_out(tmp_path):
    lines = '{"step": 1e400, "time": 1, "text": "a"}', "[1]", '{"step": 2, "time": 1, "text": "b"}', '{"step": 3'
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert [event["text"] for event in read_events(tmp_path)] == ["b"]
