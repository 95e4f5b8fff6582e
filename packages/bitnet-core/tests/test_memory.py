"""Pools keep their limit and their account, whatever threads and the garbage collector do."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bitnet_core import memory
from bitnet_core.errors import OutOfMemory
from bitnet_core.memory import PAGE, Buffer, Pool, Reservation

MIB = 1 << 20


def test_a_block_is_zeros_of_the_shape_and_type_asked_for() -> None:
    with Pool().take((3, 5), np.float32) as block:
        assert block.array.shape == (3, 5)
        assert block.array.dtype == np.float32
        assert not block.array.any()
        assert block.array.flags.writeable
        assert block.array.flags.c_contiguous


def test_a_block_may_be_bfloat16_or_empty() -> None:
    pool = Pool()
    assert pool.take(7, ml_dtypes.bfloat16).array.dtype == ml_dtypes.bfloat16
    assert pool.take((0, 3), np.int8).array.shape == (0, 3)
    assert pool.take((), np.int8).array.shape == ()
    assert pool.take(np.int64(3), np.int8).array.shape == (3,)


@pytest.mark.parametrize("align", [1, 64, 128, 4096, 1 << 16, 4 * MIB])
@pytest.mark.parametrize("nbytes", [1, 65, 3000, PAGE, 5 * PAGE + 1, 3 * MIB])
def test_a_block_starts_where_it_was_asked_to(nbytes: int, align: int) -> None:
    pool = Pool()
    blocks = [pool.take(nbytes, np.uint8, align) for _ in range(3)]
    for block in blocks:
        assert block.array.ctypes.data % max(align, 64) == 0
        block.array.fill(255)


def test_large_blocks_start_at_a_page() -> None:
    assert Pool().take(PAGE + 1, np.uint8).array.ctypes.data % PAGE == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are huge")
def test_a_large_block_has_huge_pages_where_the_system_gives_them() -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("the kernel gives no huge pages")

    def huge(pool: Pool) -> int:
        block = pool.take(8 * MIB, np.uint8)
        block.array.fill(1)
        start = f"{block.array.ctypes.data:x}-"
        _, _, rest = Path("/proc/self/smaps").read_text().partition("\n" + start)
        line = next(line for line in rest.splitlines() if line.startswith("AnonHugePages:"))
        return int(line.split()[1]) * 1024

    assert huge(Pool()) > 0
    if "[madvise]" in enabled.read_text():
        assert huge(Pool(huge_pages=False)) == 0


def test_a_recycled_block_is_zeros_again() -> None:
    pool = Pool()
    keeper = pool.take(100, np.uint8)  # keeps the page that both blocks share
    first = pool.take(100, np.uint8)
    address = first.array.ctypes.data
    first.array.fill(7)
    first.close()
    second = pool.take(100, np.uint8)
    assert second.array.ctypes.data == address
    assert not second.array.any()
    keeper.close()


def test_the_limit_refuses_before_anything_is_mapped() -> None:
    pool = Pool(8 * PAGE, name="scratch")
    kept = pool.take(5 * PAGE, np.uint8)
    with pytest.raises(OutOfMemory) as refusal:
        pool.take(4 * PAGE, np.uint8)
    assert str(refusal.value) == (
        f"pool 'scratch': {4 * PAGE} bytes asked for, {5 * PAGE} in use, {5 * PAGE} mapped, 0 reserved, "
        f"limit {8 * PAGE}; close what is not needed, or raise the limit"
    )
    assert pool.stats().mapped == 5 * PAGE
    assert pool.take(3 * PAGE, np.uint8).array.size == 3 * PAGE
    kept.close()


def test_what_fits_exactly_is_given() -> None:
    pool = Pool(4 * PAGE)
    assert pool.would_fit(4 * PAGE)
    assert not pool.would_fit(4 * PAGE + 1)
    assert pool.take(4 * PAGE, np.uint8).array.size == 4 * PAGE
    assert Pool().would_fit(1 << 60)


@pytest.mark.parametrize("exponent", [46, 62, 63, 80])
def test_what_the_system_cannot_map_is_out_of_memory(exponent: int) -> None:
    pool = Pool(name="weights")
    with pytest.raises(OutOfMemory, match=r"pool 'weights': \d+ bytes asked for, .* the system refuses: "):
        pool.take(1 << exponent, np.uint8)
    assert pool.stats() == memory.Stats(0, 0, 0, None, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited through Linux's rlimit")
def test_a_limit_of_the_process_is_out_of_memory_too() -> None:
    script = """
import resource, numpy as np
from bitnet_core.memory import Pool
from bitnet_core.errors import OutOfMemory
size = int(open("/proc/self/statm").read().split()[0]) * 4096 + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
pool = Pool()
try:
    pool.take(128 << 20, np.uint8)
except OutOfMemory as error:
    assert pool.stats().mapped == 0
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "the system refuses" in done.stdout


@pytest.mark.parametrize("shape", [-1, (2, -3)])
def test_a_negative_dimension_is_refused(shape: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no negative dimensions"):
        Pool().take(shape, np.uint8)


@pytest.mark.parametrize("kind", [object, "V0", "U0"])
def test_only_numbers_are_held(kind: object) -> None:
    with pytest.raises(ValueError, match="a pool holds numbers"):
        Pool().take(1, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("align", [0, -64, 48])
def test_an_alignment_that_is_no_power_of_two_is_refused(align: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Pool().take(1, np.uint8, align)


def test_negative_sizes_of_pools_and_reservations_are_refused() -> None:
    with pytest.raises(ValueError, match="'kv' is a number of bytes, got -1"):
        Pool(-1, name="kv")
    with pytest.raises(ValueError, match="got -5"):
        Pool().reserve(-5)


def test_a_closed_buffer_has_no_array_and_closes_again_for_nothing() -> None:
    pool = Pool()
    block = pool.take(10, np.uint8)
    block.close()
    block.close()
    assert pool.stats().blocks == 0
    with pytest.raises(ValueError, match="the buffer is closed"):
        _ = block.array


@pytest.mark.parametrize("nbytes", [100, 10 * PAGE])
def test_a_block_lives_as_long_as_any_view_of_it(nbytes: int) -> None:
    pool = Pool()
    view = pool.take((2, nbytes), np.uint8).array[1][5:].view(np.int8)
    gc.collect()
    assert pool.stats().in_use == 2 * nbytes
    view.fill(3)
    del view
    gc.collect()
    assert pool.stats().in_use == pool.stats().mapped == 0


@pytest.mark.parametrize("nbytes", [100, 3 * MIB])
def test_a_view_of_a_closed_block_never_crashes(nbytes: int) -> None:
    pool = Pool()
    block = pool.take(nbytes, np.uint8)
    view = block.array
    block.close()
    assert pool.stats().mapped == 0
    view.fill(1)
    assert int(view.sum(dtype=np.int64)) == nbytes


def test_small_blocks_share_a_page_and_the_page_goes_with_the_last() -> None:
    pool = Pool()
    blocks = [pool.take(64, np.uint8) for _ in range(PAGE // 64)]
    assert pool.stats().mapped == PAGE
    assert pool.stats().fragmentation == 0
    for block in blocks[1:]:
        block.close()
    assert pool.stats().mapped == PAGE
    assert pool.stats().fragmentation == pytest.approx(1 - 64 / PAGE)
    blocks[0].close()
    assert pool.stats() == memory.Stats(0, 0, 0, None, PAGE, 0)
    assert pool.stats().fragmentation == 0


def test_the_high_water_mark_stays() -> None:
    pool = Pool()
    pool.take(3 * PAGE, np.uint8).close()
    pool.take(PAGE, np.uint8).close()
    assert pool.stats().high_water == 3 * PAGE


def test_a_reservation_keeps_its_bytes_from_others() -> None:
    pool = Pool(10 * PAGE)
    with pool.reserve(6 * PAGE - 1) as room:
        assert room.left == pool.stats().reserved == 6 * PAGE
        assert not pool.would_fit(5 * PAGE)
        with pytest.raises(OutOfMemory, match=f"{6 * PAGE} reserved"):
            pool.take(5 * PAGE, np.uint8)
        with pytest.raises(OutOfMemory):
            pool.reserve(5 * PAGE)
        others = pool.take(4 * PAGE, np.uint8)
        blocks = [room.take(2 * PAGE, np.uint8) for _ in range(3)]
        assert room.left == 0
        with pytest.raises(OutOfMemory):
            room.take(PAGE, np.uint8)
        others.close()
        assert room.take(PAGE, np.uint8).array.size == PAGE  # beyond the reservation, as from the pool
    assert sum(block.array.size for block in blocks) == pool.stats().in_use


def test_a_closed_reservation_returns_what_was_not_drawn() -> None:
    pool = Pool(10 * PAGE)
    room = pool.reserve(8 * PAGE)
    block = room.take(3 * PAGE, np.uint8)
    room.close()
    room.close()
    assert pool.stats().reserved == room.left == 0
    assert pool.would_fit(7 * PAGE)
    block.close()
    assert pool.would_fit(10 * PAGE)


def test_a_forgotten_reservation_is_returned() -> None:
    pool = Pool(10 * PAGE)
    pool.reserve(8 * PAGE)
    gc.collect()
    assert pool.stats().reserved == 0


def test_a_refused_block_leaves_its_reservation_whole() -> None:
    pool = Pool(4 * PAGE)
    room = pool.reserve(2 * PAGE)
    with pytest.raises(OutOfMemory):
        room.take(5 * PAGE, np.uint8)
    assert room.left == 2 * PAGE


class PoolMachine(RuleBasedStateMachine):
    """Any order of takes, reservations and closings, against an account kept by hand."""

    LIMIT = 40 * PAGE

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(self.LIMIT)
        self.blocks: list[Buffer] = []
        self.rooms: list[Reservation] = []
        self.stamp = 0

    def _keep(self, block: Buffer) -> None:
        assert not block.array.any()
        self.stamp = self.stamp % 250 + 1
        block.array.fill(self.stamp)
        self.blocks.append(block)

    @rule(nbytes=st.one_of(st.integers(0, PAGE), st.integers(0, 20 * PAGE)), align=st.sampled_from([64, 1024, PAGE]))
    def take(self, nbytes: int, align: int) -> None:
        fits = self.pool.would_fit(nbytes)
        try:
            self._keep(self.pool.take(nbytes, np.uint8, align))
        except OutOfMemory:
            assert not fits

    @rule(nbytes=st.integers(0, 20 * PAGE))
    def reserve(self, nbytes: int) -> None:
        fits = self.pool.would_fit(nbytes)
        try:
            self.rooms.append(self.pool.reserve(nbytes))
            assert fits
        except OutOfMemory:
            assert not fits

    @rule(nbytes=st.one_of(st.integers(0, PAGE), st.integers(0, 20 * PAGE)), which=st.integers(0, 100))
    def draw(self, nbytes: int, which: int) -> None:
        if self.rooms:
            room = self.rooms[which % len(self.rooms)]
            promised = -(-max(nbytes, 1) // PAGE) * PAGE <= room.left
            try:
                self._keep(room.take(nbytes, np.uint8))
            except OutOfMemory:
                assert not promised

    @rule(which=st.integers(0, 100), forget=st.booleans())
    def close(self, which: int, forget: bool) -> None:
        if self.blocks:
            block = self.blocks.pop(which % len(self.blocks))
            array = block.array
            assert array.size == 0 or array.min() == array.max() > 0  # nobody else wrote here
            if not forget:
                block.close()

    @rule(which=st.integers(0, 100), forget=st.booleans())
    def cancel(self, which: int, forget: bool) -> None:
        if self.rooms:
            room = self.rooms.pop(which % len(self.rooms))
            if not forget:
                room.close()

    @invariant()
    def the_account_is_right(self) -> None:
        stats = self.pool.stats()
        assert stats.in_use == sum(block.array.nbytes for block in self.blocks)
        assert stats.blocks == len(self.blocks)
        assert stats.reserved == sum(room.left for room in self.rooms)
        assert stats.in_use <= stats.mapped <= stats.high_water <= self.LIMIT
        assert stats.mapped + stats.reserved <= self.LIMIT
        assert 0 <= stats.fragmentation <= 1

    def teardown(self) -> None:
        self.blocks.clear()
        self.rooms.clear()
        stats = self.pool.stats()
        assert (stats.in_use, stats.mapped, stats.reserved, stats.blocks) == (0, 0, 0, 0)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def restless() -> Iterator[None]:
    """Change threads and collect garbage all the time, so that blocks end inside the pool's own locked sections."""
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(3)
    sys.setswitchinterval(1e-6)
    yield
    gc.set_threshold(*threshold)
    sys.setswitchinterval(interval)


def _churn(pool: Pool, seed: int, failures: list[str]) -> None:
    """Take, stamp, check, close and forget blocks at random."""
    choice = random.Random(seed)
    live: list[Buffer] = []
    for _ in range(6000):
        try:
            source = pool.reserve(choice.randrange(4 * PAGE)) if choice.random() < 0.2 else pool
            block = source.take(choice.choice([32, 700, 2000, PAGE, 3 * PAGE]), np.uint8)
        except OutOfMemory:
            block = None
        if block is not None:
            if block.array.any():
                failures.append("not zero")
            block.array.fill(seed)
            live.append(block)
        stats = pool.stats()
        if stats.mapped + stats.reserved > (stats.limit or 0):
            failures.append("above the limit")
        while live and (block is None or choice.random() < 0.5):
            old = live.pop(choice.randrange(len(live)))
            if (old.array != seed).any():
                failures.append("overwritten")
            if choice.random() < 0.5:
                old.close()
            else:
                ring: list[object] = [old]
                ring.append(ring)  # only the garbage collector ends this one
            block = old


def test_threads_and_the_garbage_collector_keep_the_account(restless: None) -> None:
    pool = Pool(24 * PAGE)
    failures: list[str] = []
    threads = [threading.Thread(target=_churn, args=(pool, seed, failures)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    gc.collect()
    stats = pool.stats()
    assert failures == []
    assert (stats.in_use, stats.mapped, stats.reserved, stats.blocks) == (0, 0, 0, 0)
    assert stats.high_water <= 24 * PAGE


def test_a_block_closed_by_many_threads_at_once_is_returned_once() -> None:
    pool = Pool()
    for _ in range(50):
        block = pool.take(100, np.uint8)
        gate = threading.Barrier(4)

        def close(block: Buffer = block, gate: threading.Barrier = gate) -> None:
            gate.wait()
            block.close()

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.stats() == memory.Stats(0, 0, 0, None, PAGE, 0)


def test_memory_goes_back_to_the_system() -> None:
    process = psutil.Process()
    pool = Pool()
    before = process.memory_info().rss
    block = pool.take(64 * MIB, np.uint8)
    block.array.fill(1)
    assert process.memory_info().rss - before > 48 * MIB
    block.close()
    assert process.memory_info().rss - before < 16 * MIB


def _machine(root: Path, *, total: int = 1000, available: int = 900) -> Path:
    """A machine with so many MiB."""
    (root / "proc/self").mkdir(parents=True)
    text = f"MemTotal: {total * 1024} kB\nMemFree: 1 kB\nMemAvailable: {available * 1024} kB\n"
    (root / "proc/meminfo").write_text(text)
    return root


def _group(root: Path, **files: object) -> None:
    """Put this process in a group of version 2 with such files."""
    (root / "proc/self/cgroup").write_text("0::/pod\n")
    folder = root / "sys/fs/cgroup/pod"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_a_machine_with_room_has_no_pressure(tmp_path: Path) -> None:
    found = memory.pressure(_machine(tmp_path))
    assert found == memory.Pressure(1000 * MIB, 100 * MIB, 900 * MIB, 0, "none")
    assert memory.available(tmp_path) == 900 * MIB


@pytest.mark.parametrize(("left", "level"), [(125, "none"), (124, "some"), (50, "some"), (49, "critical")])
def test_pressure_rises_as_memory_runs_out(tmp_path: Path, left: int, level: str) -> None:
    assert memory.pressure(_machine(tmp_path, available=left)).level == level


def test_a_group_with_less_left_than_the_machine_binds(tmp_path: Path) -> None:
    _group(_machine(tmp_path), max=400 * MIB, current=390 * MIB, stat=f"anon 5\ninactive_file {30 * MIB}")
    assert memory.pressure(tmp_path) == memory.Pressure(400 * MIB, 360 * MIB, 40 * MIB, 0, "some")


def test_a_group_with_more_left_than_the_machine_does_not_bind(tmp_path: Path) -> None:
    _group(_machine(tmp_path), max=4000 * MIB, current=0)
    assert memory.pressure(tmp_path).limit == 1000 * MIB


def test_a_group_above_its_limit_has_nothing_left(tmp_path: Path) -> None:
    _group(_machine(tmp_path), max=4000 * MIB, high=100 * MIB, current=120 * MIB, events="oom 1\noom_kill 3")
    assert memory.pressure(tmp_path) == memory.Pressure(100 * MIB, 100 * MIB, 0, 3, "critical")


@pytest.mark.parametrize(
    ("some", "full", "level"),
    [(9.9, 4.9, "none"), (10.0, 0.0, "some"), (0.0, 5.0, "critical"), (80.0, 60.0, "critical")],
)
def test_time_spent_waiting_for_memory_is_pressure(tmp_path: Path, some: float, full: float, level: str) -> None:
    stalls = f"some avg10={some} avg60=0.00 avg300=0.00 total=1\nfull avg10={full} avg60=0.00 avg300=0.00 total=1"
    _group(_machine(tmp_path), pressure=stalls)
    assert memory.pressure(tmp_path).level == level


def test_a_system_without_files_is_asked_itself(tmp_path: Path) -> None:
    assert memory.pressure(tmp_path).limit == psutil.virtual_memory().total


def test_this_machine_has_memory_left() -> None:
    found = memory.pressure()
    assert 0 < found.available <= found.limit <= psutil.virtual_memory().total
    assert found.used == found.limit - found.available
