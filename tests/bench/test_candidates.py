"""Tile shapes compiled without a GPU, and the table after tuning on one."""

from dataclasses import replace

import pytest

from rsattn.bench import candidates, tune
from rsattn.kernels import configs


def slot(kernel, max_width=64, max_keys=0):
    (found,) = [
        s for s in candidates.SLOTS if (s.row.kernel, s.row.max_width, s.row.max_keys) == (kernel, max_width, max_keys)
    ]
    return found


def test_the_committed_table_has_every_candidate():
    wanted = {row for of in candidates.SLOTS for row in of.candidates()}
    assert {row for row, _ in candidates.committed()} == wanted, "run python -m bench.candidates --write"


def test_every_slot_has_candidates():
    assert all(tune.usable(of, "sm90") for of in candidates.SLOTS)


def test_candidates_that_spill_are_not_tried():
    spilling = {row for row, cost in candidates.committed() if cost.stack}
    assert spilling
    assert not spilling & {row for of in candidates.SLOTS for row in tune.usable(of, "sm90")}


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "programs"),
    [
        (255, 4, 73728, 2),  # 256 registers for each of 128 threads: two programs have all 65536
        (128, 4, 1024, 4),
        (32, 4, 0, 16),  # 64 warps
        (32, 1, 0, 32),  # 32 blocks
        (32, 4, 116 * 1024, 1),  # 116 + 1 KiB twice is more than 228
        (32, 4, 228 * 1024, 0),  # more than a block can have
    ],
)
def test_programs_on_a_multiprocessor(registers, warps, shared, programs):
    assert candidates.resident(registers, warps, shared) == programs


def test_larger_blocks_read_less():
    stream = slot("stream_forward")
    head = 577 * 64 * 2
    small, large = (replace(stream.row, block_m=m, block_n=64) for m in (64, 128))
    assert candidates.traffic(stream, small) == 32 * 12 * head * 2 * 10
    assert candidates.traffic(stream, large) == 32 * 12 * head * 2 * 5
    norm = slot("column_sums")
    assert candidates.traffic(norm, replace(norm.row, block_m=64, block_n=128)) == 32 * 12 * head * 5


def test_first_in_the_table_and_back():
    row = replace(slot("stream_forward").row, block_m=16, block_n=16)
    arguments = ("stream_forward", "sm90", 2, 64, 577, False)
    before = configs.find(*arguments)
    with candidates.first_in_the_table([row]):
        assert configs.find(*arguments) == row
        assert configs.find("stream_forward", "sm80", 2, 64, 577, False) != row
    assert configs.find(*arguments) == before != row


class TestReplaced:
    """After tuning, the fastest row serves the calls of its slot and no others."""

    @pytest.mark.parametrize("of", candidates.SLOTS, ids=lambda of: of.name)
    @pytest.mark.parametrize("arch", ["sm90", "sm120"])
    def test_its_calls_take_it(self, of, arch, monkeypatch):
        row = replace(of.candidates()[-1], arch=arch)
        table = tune.replaced(configs.table(), of, row)
        others = [
            ("sm80", 2, of.head_dim, of.length, False),
            (arch, 4, of.head_dim, of.length, False),
            (arch, 2, of.head_dim, of.length, True),
        ]
        before = [configs.find(of.row.kernel, *call) for call in others]
        monkeypatch.setattr(configs, "table", lambda: tuple(table))
        configs.find.cache_clear()
        try:
            assert configs.find(of.row.kernel, arch, 2, of.head_dim, of.length, False) == row
            assert [configs.find(of.row.kernel, *call) for call in others] == before
        finally:
            configs.find.cache_clear()

    def test_twice_is_once(self):
        of = slot("column_sums")
        first, second = (replace(row, arch="sm90") for row in of.candidates()[:2])
        once = tune.replaced(configs.table(), of, first)
        twice = tune.replaced(once, of, second)
        assert first not in twice
        assert twice.count(second) == 1
        assert len(once) == len(twice)

    def test_written_is_what_the_package_reads(self, tmp_path):
        tune.write(configs.table(), tmp_path / "configs.json")
        assert (tmp_path / "configs.json").read_text() == tune.CONFIGS.read_text()


def test_a_row_changes_only_for_a_large_enough_gain(capsys):
    of = slot("column_sums"), slot("stream_forward"), slot("query_gradient")
    rows = [replace(each.candidates()[0], arch="sm90") for each in of]
    measured = dict(
        zip((each.name for each in of), [(rows[0], 99e-6, 100e-6), (rows[1], 90e-6, 100e-6), (rows[2], 50e-6, 100e-6)])
    )
    steps = list(tune.improvements(of, lambda each: measured[each.name]))
    assert [words.split(": ")[1] for _, words in steps] == ["100.0 -> 90.0 us", "100.0 -> 50.0 us"]
    before, (first, second) = configs.table(), (table for table, _ in steps)
    assert set(first) - set(before) == {rows[1]}
    assert set(second) - set(before) == {rows[1], rows[2]}
    printed = capsys.readouterr().out
    assert all(each.name in printed for each in of)


def test_tuning_without_a_gpu_says_what_to_do_instead(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench.tune"])
    with pytest.raises(SystemExit, match=r"tuning needs a GPU; python -m bench\.candidates"):
        tune.main()
