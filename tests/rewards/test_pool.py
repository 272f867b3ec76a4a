"""Whatever a reward function does to its process: that response fails with the reason, all others keep their exact scores."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from covey.collect.scoring import score_groups
from covey.errors import ConfigError, DataError
from covey.rewards import build_reward, wrap_function
from covey.rewards.pool import Isolated, Limits
from covey.types import Group, Prompt, Rollout, Score
from tests.rewards.scored import prompt, rollouts, score, values

pytestmark = pytest.mark.distributed

QUICK = Limits(workers=1, timeout_s=0.5, memory_mb=512)
ROOMY = Limits(workers=1, timeout_s=20.0, memory_mb=512)
TIMEOUT = "timeout: no score within 0.5 s"


def sleep() -> Any:
    time.sleep(60)


def spin() -> Any:
    while True:
        pass


def ignore_sigterm() -> Any:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)


def hold_the_lock() -> Any:
    """C code that never lets Python run again."""
    ctypes.PyDLL(None).pause()


def fork_children() -> Any:
    """Children in sessions of their own, which would go on when their parent is gone."""
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            with open("children", "a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(60)
            os._exit(0)
    time.sleep(60)


def leave() -> Any:
    os._exit(3)


def kill_itself() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_the_group() -> Any:
    os.killpg(0, signal.SIGTERM)
    time.sleep(60)


def segfault() -> Any:
    ctypes.string_at(0)


def abort() -> Any:
    os.abort()


def allocate() -> Any:
    return len(bytearray(10 * 2**30))


def hoard() -> Any:
    held = []
    while True:
        held.append(bytearray(2**24))


def interrupt() -> Any:
    raise KeyboardInterrupt


def fall() -> Any:
    return fall() + 1


def alarm() -> Any:
    """What verifiers do to limit themselves: it works in a main thread only."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError("the verifier's own limit")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(60)


def scribble() -> Any:
    """Write to everything that is open: numbers, and what looks like a result."""
    for number in range(1024):
        with suppress(OSError):
            os.write(number, b'{"scores": [[{"f": 9.0}, {}, {}, ""]]}\n' * 9)
    return 1.0


def close_standard() -> Any:
    for number in (0, 1, 2):
        os.close(number)
    return 1.0


def close_all() -> Any:
    os.closerange(0, 4096)
    return 1.0


def go_on_twice() -> Any:
    """A copy of the process that returns, too."""
    os.fork()
    return 1.0


def shout() -> Any:
    for _ in range(50):
        print("x" * 2**20)
        os.write(2, b"y" * 1000)
    return 1.0


class Odd:
    def __float__(self) -> float:
        raise ValueError("no")

    def __repr__(self) -> str:
        raise ValueError("no")


FAULTS: dict[str, tuple[Callable[[], Any], Limits, Any]] = {
    "sleeps": (sleep, QUICK, TIMEOUT),
    "spins": (spin, QUICK, TIMEOUT),
    "ignores signals": (ignore_sigterm, QUICK, TIMEOUT),
    "holds the lock": (hold_the_lock, QUICK, TIMEOUT),
    "leaves": (leave, ROOMY, "crash: it left with exit code 3"),
    "kill -9": (kill_itself, ROOMY, "crash: SIGKILL"),
    "kills its group": (kill_the_group, ROOMY, "crash: SIGTERM"),
    "segfault": (segfault, ROOMY, "crash: SIGSEGV"),
    "abort": (abort, ROOMY, "crash: SIGABRT"),
    "sys.exit": (lambda: sys.exit(0), ROOMY, "exception: SystemExit: 0"),
    "allocates": (allocate, ROOMY, "memory: the function ran out of it"),
    "hoards": (hoard, ROOMY, "memory: the function ran out of it"),
    "recursion": (fall, ROOMY, "exception: RecursionError: maximum recursion depth exceeded"),
    "raises": (lambda: 1 / 0, ROOMY, "exception: ZeroDivisionError: division by zero"),
    "interrupt": (interrupt, ROOMY, "exception: KeyboardInterrupt"),
    "alarm": (alarm, ROOMY, "exception: TimeoutError: the verifier's own limit"),
    "NaN": (lambda: math.nan, ROOMY, "nonfinite: returned NaN"),
    "infinite": (lambda: -math.inf, ROOMY, "nonfinite: returned -inf"),
    "huge": (lambda: 10**400, ROOMY, "nonfinite: returned a number beyond all floats"),
    "string": (lambda: "0.5", ROOMY, "type: returned '0.5' (str), not a number"),
    "complex": (lambda: 1j, ROOMY, "type: returned 1j (complex), not a number"),
    "odd": (Odd, ROOMY, "type: returned a value without repr (Odd), not a number"),
    "None": (lambda: None, ROOMY, "none: returned None, not scorable"),
    "tensor": (lambda: torch.tensor(0.5), ROOMY, 0.5),
    "numpy": (lambda: np.float32(0.5), ROOMY, 0.5),
    "tensor of two": (lambda: torch.ones(2), ROOMY, "type: returned tensor([1., 1.]) (Tensor), not a number"),
    "long feedback": (lambda: (0.5, "x" * 2**21), ROOMY, "size: the result has 20"),
    "shouts": (shout, ROOMY, 1.0),
    "closes 0 to 2": (close_standard, ROOMY, 1.0),
    "closes all": (close_all, ROOMY, "crash: "),
    "scribbles": (scribble, ROOMY, "crash: it wrote to the channel of its results"),
    "goes on twice": (go_on_twice, ROOMY, 1.0),
}


def scalar(act: Callable[[], Any]) -> Callable[..., Any]:
    def f(completion: str) -> Any:
        return act() if completion == "bad" else float(len(completion))

    return f


def together(act: Callable[[], Any]) -> Callable[..., Any]:
    def f(completions: list[str], **columns: Any) -> list[Any]:
        return [act() if completion == "bad" else float(len(completion)) for completion in completions]

    return f


@pytest.mark.parametrize("form", [scalar, together])
@pytest.mark.parametrize("name", FAULTS)
def test_only_the_culprit_fails(name: str, form: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> None:
    act, limits, expected = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    begin = time.monotonic()
    found = values(score(form(act), "a", "bad", "ccc", limits=limits))
    assert time.monotonic() - begin < 15
    assert (found[0], found[2]) == (1.0, 3.0)
    if isinstance(expected, str):
        assert isinstance(found[1], str)
        assert found[1].startswith(expected)
        assert "\n" not in found[1]
    else:
        assert found[1] == expected


def test_children_end_with_their_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert values(score(scalar(fork_children), "a", "bad", limits=QUICK)) == [1.0, TIMEOUT]
    children = [int(line) for line in (tmp_path / "children").read_text().split()]
    assert len(children) == 5
    assert wait_until(lambda: not any(map(alive, children)))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], limit_s: float = 5.0) -> bool:
    end = time.monotonic() + limit_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda n: [1.0] * (n - 1), "length: 1 values for 2 completions"),
        (lambda n: [1.0] * (n + 1), "length: more than 2 values for 2 completions"),
        (lambda n: iter(int, 1), "length: more than 2 values for 2 completions"),
        (lambda n: 1.0, "length: returned 1.0 (float), not a list with 2 values"),
        (lambda n: None, "length: returned None, not a list with 2 values"),
        (lambda n: "ab", "length: returned 'ab' (str), not a list with 2 values"),
        (lambda n: {"a": 1, "b": 2}, "length: returned {'a': 1, 'b': 2} (dict), not a list with 2 values"),
        (lambda n: torch.tensor(1.0), "length: returned tensor(1.) (Tensor), not a list with 2 values"),
    ],
)
def test_another_number_of_values_fails_the_whole_group(result: Callable[[int], Any], reason: str) -> None:
    """Which value belongs to which response cannot be known; it is not tried one by one, where it would seem to be right."""
    assert values(score(lambda completions: result(len(completions)), "a", "b")) == [reason] * 2


@pytest.mark.parametrize("result", [lambda n: torch.arange(n), lambda n: np.arange(n), lambda n: (i for i in range(n))])
def test_whatever_holds_one_value_per_response(result: Callable[[int], Any]) -> None:
    assert values(score(lambda completions: result(len(completions)), "a", "b")) == [0.0, 1.0]


def test_what_is_printed_goes_to_stderr_and_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    def f(completion: str) -> float:
        print("\x1b[31mred", completion)
        os.write(1, b"raw\n")
        return 1.0

    assert values(score(f, "a")) == [1.0]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sorted(captured.err.split()) == ["[31mred", "a", "raw"]
    score(scalar(shout), "bad")
    assert 4096 <= len(capsys.readouterr().err) < 4200


def test_inputs_cannot_be_changed() -> None:
    def f(completions: list[str], tags: list[list[str]], prompts: list[str]) -> list[int]:
        counts = [len(tag) for tag in tags]
        tags[0].append("x")
        tags.clear()
        completions.clear()
        prompts.clear()
        return counts

    given = prompt(tags=["a", "b"])
    for _ in range(2):
        assert values(score(f, "a", "b", given=given)) == [2.0, 2.0]
    assert given.meta == {"tags": ["a", "b"]}


def test_the_process_is_as_it_was_for_the_next_response(tmp_path: Path) -> None:
    def f(completion: str) -> float:
        if completion == "bad":
            signal.alarm(1)
            os.chdir("/")
            sys.stdout = sys.stderr = None  # type: ignore[assignment]
            os.close(1)
        print("said")
        return float(os.getcwd() == "/") + 2 * float(signal.getitimer(signal.ITIMER_REAL)[0] > 0)

    def quiet(completion: str) -> float:
        return f(completion) if completion != "bad" else (f.__closure__ is None) * 0.0 + spoil()

    def spoil() -> float:
        signal.alarm(1)
        os.chdir("/")
        sys.stdout = sys.stderr = None  # type: ignore[assignment]
        os.close(1)
        return 5.0

    assert values(score(quiet, "bad", "a", "a")) == [5.0, 0.0, 0.0]


def test_columns_arrive_as_they_are() -> None:
    """Python's own types as well, that JSON does not have."""
    meta = {
        "pair": (1, (2.5, None)),
        "table": {1: "a", (2, 3): ["b"]},
        "names": {"x"},
        "raw": b"\x00\xff",
        "$map": {"$set": 1},
    }
    given = prompt(**meta, number=np.float64(0.1), text="\ud800 é")

    def f(completion: str, **columns: Any) -> float:
        return float(all(columns[name] == value and type(columns[name]) is type(value) for name, value in meta.items()))

    assert values(score(f, "a", given=given)) == [1.0]
    assert values(score(lambda number: number, "a", given=given)) == [0.1]
    assert values(score(lambda text: len(text), "a", given=given)) == [3.0]


def test_a_column_that_cannot_be_handed_over() -> None:
    given = prompt(image=object(), name="n")
    with pytest.raises(DataError) as caught:
        wrap_function(lambda completion, image: 1.0).check(given)
    assert "column 'image' of p/0: builtins.object cannot be handed to another process" in str(caught.value)
    assert values(score(lambda completion, name, **columns: float("image" in columns), "a", given=given)) == [0.0]


class Tournament:
    """A reward of the protocol, given as an object: it sees all rollouts with their tokens and log-probabilities."""

    weights = {"wins": 1.0, "ties": 0.0}  # noqa: RUF012

    async def score(self, prompt: Prompt, rollouts: list[Rollout]) -> list[Score]:
        await asyncio.sleep(0)
        if any(r.text == "bad" for r in rollouts):
            os._exit(1)
        if any(r.text == "wrong" for r in rollouts):
            raise DataError("row 3", "it is wrong", "Mend it.")
        best = max(len(r.text) for r in rollouts)
        logp = sum(r.turns[0].sampled_logp[0] for r in rollouts)
        return [Score({"wins": float(len(r.text) == best), "ties": logp}, detail=prompt.id) for r in rollouts]


def test_a_reward_object() -> None:
    found = score(Tournament(), "a", "bb")
    assert [one.values for one in found] == [{"wins": 0.0, "ties": -0.2}, {"wins": 1.0, "ties": -0.2}]
    assert found[0].detail == "p/0"
    found = score(Tournament(), "a", "bad")
    assert found[0].values == {"wins": 1.0, "ties": -0.1}  # alone, as the docs say
    assert found[1].failures == dict.fromkeys(["wins", "ties"], "crash: it left with exit code 1")
    with pytest.raises(DataError, match=r"row 3: it is wrong\. Mend it\."):
        score(Tournament(), "wrong")


def test_workers_work_at_once_and_from_other_threads() -> None:
    def f(completion: str) -> float:
        time.sleep(0.4)
        signal.alarm(5)  # only a main thread may
        signal.alarm(0)
        return float(threading.current_thread() is threading.main_thread())

    groups = [Group(str(at), prompt(), (1,), tuple(rollouts("a"))) for at in range(4)]
    found: list[Any] = []
    with Isolated(wrap_function(f), Limits(workers=4)) as pool:
        asyncio.run(score_groups(pool, groups))
        begin = time.monotonic()
        thread = threading.Thread(target=lambda: found.extend(asyncio.run(score_groups(pool, groups))))
        thread.start()
        thread.join()
        wait = time.monotonic() - begin
    assert [group.rollouts[0].rewards for group in found] == [{"f": 1.0}] * 4
    assert wait < 1.2


@pytest.mark.slow
def test_two_hundred_kills_leave_nothing_behind() -> None:
    before, open_before = children_of(os.getpid()), len(os.listdir("/proc/self/fd"))
    with Isolated(wrap_function(scalar(kill_itself)), Limits(workers=2, timeout_s=10.0)) as pool:
        asyncio.run(pool.score(prompt(), rollouts("a")))
        (nursery,) = children_of(os.getpid()) - before
        handles = len(os.listdir("/proc/self/fd"))
        begin = time.monotonic()
        for _ in range(20):
            found = values(asyncio.run(pool.score(prompt(), rollouts(*["bad", "a"] * 10))))
            assert found == ["crash: SIGKILL", 1.0] * 10
        assert time.monotonic() - begin < 60
        assert len(os.listdir("/proc/self/fd")) <= handles + 3
        assert len(children_of(nursery)) <= 2
        assert len(os.listdir(f"/proc/{nursery}/fd")) <= 5
    gc.collect()
    assert children_of(os.getpid()) == before
    assert len(os.listdir("/proc/self/fd")) == open_before


def children_of(pid: int) -> set[int]:
    """Child processes, zombies too."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(word) for task in tasks for word in (task / "children").read_text().split()}


PARENT = """
import asyncio, sys, time
from covey.rewards import build_reward
from covey.rewards.pool import Isolated, Limits
from tests.rewards.scored import prompt, rollouts
import tests.rewards.test_pool as cases
reward = build_reward(sys.argv[1]) if len(sys.argv) > 1 else cases.wrap_function(cases.scalar(cases.fork_children))
if __name__ == "__main__":
    pool = Isolated(reward, Limits(workers=1, timeout_s=60))
    asyncio.run(pool.score(prompt(), rollouts("bad")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
def test_nothing_outlives_a_killed_run(tmp_path: Path, given: bool) -> None:
    """kill -9 of the run, while a child of a worker sleeps in a session of its own."""
    (tmp_path / "r.py").write_text(
        "from tests.rewards.test_pool import fork_children\ndef f(completion):\n    return fork_children()\n"
    )
    words = [sys.executable, "-c", PARENT, *([] if given else [f"{tmp_path}/r.py:f"])]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(words, cwd=tmp_path, env=environment)
    file = tmp_path / "children"
    assert wait_until(lambda: file.exists() and len(file.read_text().split()) == 5, 60)
    descendants, level = set[int](), {run.pid}
    while level := {child for pid in level for child in children_of(pid)}:
        descendants |= level
    assert len(descendants) == 7
    run.kill()
    run.wait()
    assert wait_until(lambda: not any(map(alive, descendants)))


def test_a_nursery_that_dies_is_replaced_if_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "import os, signal\ndef f(completion):\n"
        "    if completion == 'bad':\n        os.kill(os.getppid(), signal.SIGKILL)\n        signal.pause()\n    return 1.0\n"
    )
    found = values(score(f"{tmp_path}/r.py:f", "a", "bad", "b"))
    assert (found[0], found[2]) == (1.0, 1.0)
    assert found[1].startswith("crash: ")


def test_files_are_loaded_by_an_interpreter_of_their_own(tmp_path: Path) -> None:
    """Without torch, with the modules beside it, and with the arguments of nobody."""
    (tmp_path / "r.py").write_text(
        "import sys\nprint('imported')\ndef f(completion):\n    return float('torch' in sys.modules)\n"
    )
    assert values(score(f"{tmp_path}/r.py:f", "a")) == [0.0]


def test_a_file_that_cannot_be_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text("def f(completion):\n    return 1.0\n")
    reward = build_reward(f"{file}:f")
    file.write_text("def g(completion):\n    return 1.0\n")
    with Isolated(reward, ROOMY) as pool, pytest.raises(ConfigError, match=r"has no function 'f'\. Known: g\."):
        asyncio.run(pool.score(prompt(), rollouts("a")))


def test_a_pool_that_is_closed_lets_its_calls_end() -> None:
    pool = Isolated(wrap_function(scalar(sleep)), Limits(workers=1, timeout_s=60))

    async def ask() -> list[Score]:
        call = asyncio.ensure_future(pool.score(prompt(), rollouts("bad", "bad")))
        await asyncio.sleep(0.5)
        begin = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(None, pool.close)
        assert time.monotonic() - begin < 5
        return await call

    assert all(reason.startswith("crash: ") for reason in values(asyncio.run(ask())))


def test_a_nursery_that_still_loads_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text("import sys, time\nif sys.flags.safe_path:\n    time.sleep(60)\ndef f(completion): return 1.0\n")
    pool = Isolated(build_reward(f"{file}:f"), Limits(workers=1))
    asking = threading.Thread(target=lambda: _try(pool), daemon=True)
    asking.start()
    time.sleep(1.0)
    begin = time.monotonic()
    pool.close()
    asking.join(10)
    assert time.monotonic() - begin < 10
    assert not asking.is_alive()


def _try(pool: Isolated) -> None:
    with suppress(DataError):
        asyncio.run(pool.score(prompt(), rollouts("a")))


def test_core_files_are_not_written(tmp_path: Path) -> None:
    assert values(score(lambda completion: resource.getrlimit(resource.RLIMIT_CORE)[0], "a")) == [0.0]


def test_a_score_is_worth_as_much_in_a_group_of_any_order() -> None:
    """The same responses in another order, some of them fatal: the same scores."""
    texts = ["a", "bad", "ccc", "dddd", "bad"]
    for form in (scalar, together):
        one = values(score(form(leave), *texts))
        other = values(score(form(leave), *reversed(texts)))
        assert (
            one == other[::-1] == [1.0, "crash: it left with exit code 3", 3.0, 4.0, "crash: it left with exit code 3"]
        )


def test_scores_are_json_on_the_way() -> None:
    facts = {"deep": {"a": [1, 2]}, "set": {1}, "nan": math.nan, "big": 10**30}
    (found,) = score(lambda completion: {"score": 1, **facts}, "a")
    assert found.facts == {"deep": {"a": [1, 2]}, "set": "{1}", "nan": "nan", "big": 10**30}
    assert json.dumps(found.facts)
