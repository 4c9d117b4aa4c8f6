"""The port where the members of a group meet: held from the moment it is chosen, so that no other process takes it."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Thread

import pytest
import torch

from simplear_rl.errors import PeerLostError
from simplear_rl.weights.group import WeightGroup, meeting_place

MEMBER = """
import sys
from simplear_rl.weights.group import WeightGroup

group = WeightGroup(sys.argv[1], 1, 2)
received = {}
version, _ = group.receive(lambda tensors: received.update(tensors))
print(version, received["weight"].tolist())
"""


def address(store) -> str:
    return f"tcp://{store.host}:{store.port}"


def test_nobody_else_gets_the_port_before_the_group_is_formed():
    stores = [meeting_place("127.0.0.1") for _ in range(3)]
    assert len({store.port for store in stores}) == 3
    for store in stores:
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("", store.port))


def test_the_members_meet_there_in_spite_of_other_runs(tmp_path):
    ours, theirs = meeting_place("127.0.0.1"), meeting_place("127.0.0.1")
    command = [sys.executable, "-c", MEMBER, address(ours)]
    member = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    group = WeightGroup(address(ours), 0, 2)
    other = WeightGroup(address(theirs), 0, 1)
    del ours, theirs  # the groups keep what they need
    group.send([{"weight": torch.arange(3.0)}], version=7)
    other.send([{"weight": torch.zeros(3)}], version=8)
    assert member.communicate()[0].strip() == "7 [0.0, 1.0, 2.0]"


def test_a_group_is_formed_again_at_another_port():
    before = meeting_place("127.0.0.1")
    groups = [WeightGroup(address(before), 0, 1)]
    after = meeting_place("127.0.0.1")
    groups.append(WeightGroup(address(after), 0, 1))
    assert before.port != after.port
    for version, group in enumerate(groups):
        group.send([{"weight": torch.ones(2)}], version)


def test_a_free_port_will_do_as_well():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    received: dict[str, torch.Tensor] = {}
    with ThreadPoolExecutor(1) as member:
        told = member.submit(lambda: WeightGroup(rendezvous, 1, 2, timedelta(minutes=1)).receive(received.update))
        WeightGroup(rendezvous, 0, 2, timedelta(minutes=1)).send([{"weight": torch.ones(2)}], version=1)
    assert told.result()[0] == 1 and received["weight"].tolist() == [1, 1]


def test_who_leaves_is_missed_at_once_even_while_an_error_keeps_its_frames():
    place, errors = meeting_place("127.0.0.1"), []

    def refuse(tensors):
        raise ValueError("not these")

    def member():
        group = WeightGroup(address(place), 1, 2)
        try:
            group.receive(refuse)
        except ValueError as error:
            errors.append(error)
            group.leave()

    receiver = Thread(target=member)
    receiver.start()
    group = WeightGroup(address(place), 0, 2, timedelta(seconds=20))
    buckets = [{"weight": torch.ones(2_000_000)}] * 8  # more than what is sent without being read
    with pytest.raises(PeerLostError, match="(?i)closed|reset|broken pipe"):
        group.send(buckets, version=1)
    receiver.join()
    assert str(errors[0]) == "not these"
