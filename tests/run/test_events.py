from threading import Thread

from simplear_rl.run.events import say


def test_lines_of_several_threads_stay_whole(capfd):
    threads = [Thread(target=say, args=[letter * 40] * 5000) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*capfd.readouterr().out.splitlines()} == {"a" * 40, "b" * 40}
