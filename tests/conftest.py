"""What every test shares: a home of its own, fixed seeds, and skips that say why."""

from __future__ import annotations

import gc
import os
import random
import shlex
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which

# One thread for PyTorch and for NumPy's BLAS, before these are imported, here and in every process
# that a test starts: workers of xdist are as many as cores, models are tiny, and threads of OpenMP
# that wait for others spin. On a busy machine that made single tests last minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Programs that tests start, some hundred, would otherwise each compile our sources for themselves.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import numpy as np
import pytest
from hypothesis import settings
from precompiled import with_intrinsics

from lockstep.cli.doctor import find_chromium

sys.dont_write_bytecode = False  # in this process, as in those
# A shell starts what it runs in the background deaf to Ctrl-C, and so is all that this starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The plain run draws the same examples each time; `--hypothesis-profile search` looks for others.
settings.register_profile("plain", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, max_examples=500)
settings.load_profile("plain")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that writes goldens instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with tests/golden/<test file>/<name>; `--update-golden` writes it instead."""
    folder = Path(__file__).parent / "golden" / Path(request.node.path).stem

    def compare(name: str, text: str) -> None:
        path = folder / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no {path.name}: run pytest --update-golden and read what it wrote"
        assert text == path.read_text(), f"{path.name} differs: --update-golden, then read the diff"

    return compare


# The files that take longest, longest first: one that began last would be waited for alone.
LONGEST = (
    "test_ops.py",
    "test_ready_claims.py",
    "test_codegen.py",
    "test_compare.py",
    "test_parity.py",
    "test_verify_suggest.py",
    "test_docs.py",
    "test_ops_torch.py",
    "test_export_c.py",
    "test_export.py",
    "test_resume.py",
    "test_family_programs.py",
    "test_training.py",
    "test_families.py",
    "test_verify_selftest.py",
    "test_gguf_tokenizer.py",
    "test_cli_run.py",
    "test_report_browser.py",
    "test_report.py",
    "test_mutation_table.py",
    "test_locate_orbax.py",
    "test_verify_memory.py",
    "test_cli.py",
    "test_derive_converters.py",
    "test_server_batching.py",
    "test_inspect.py",
    "test_values.py",
    "test_server_process.py",
    "test_data.py",
    "test_quantize.py",
    "test_bench.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Every other worker reads the files from the last one on: half of them others have compiled.

    In a new checkout to compile them takes as long as all imports of the tests.
    """
    report = yield
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    if isinstance(collector, pytest.Dir) and int(number) % 2:
        report.result.reverse()
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first, skips what this machine cannot run, and says what is missing."""
    places = {name: place for place, name in enumerate(LONGEST)}
    # By path as well, for each worker must find the same order.
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), item.path))
    lacks = {
        "torch": [name for name in ("torch", "transformers") if find_spec(name) is None],
        "browser": [] if find_chromium() else ["chromium"],
    }
    for item in items:
        for marker, missing in lacks.items():
            if missing and item.get_closest_marker(marker):
                reason = f"needs {' and '.join(missing)}; `lockstep doctor` says how to get it"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Lets the garbage collector look at less, and less often: it took a tenth of the time."""
    gc.freeze()  # modules and tests, which stay
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def _kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What compilers make, by all that it depends on; later runs of pytest find it as well."""
    if cache := getattr(request.config, "cache", None):
        return Path(cache.mkdir("compiled"))
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session", autouse=True)
def _shared_home(_kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """LOCKSTEP_HOME for the whole run, so that no test touches the user's and builds are shared."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the directory that all workers of this run share
    home = root / "lockstep-home"
    home.mkdir(exist_ok=True)
    (_kept / "build").mkdir(exist_ok=True)
    with suppress(FileExistsError):  # another worker was first
        (home / "build").symlink_to(_kept / "build")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(home))
        # A new one costs zig ten seconds: it builds what every program links.
        patch.setenv("ZIG_GLOBAL_CACHE_DIR", str(_kept / "zig"))
        # A warning of a compiler that we never saw must not stop a user; one of ours must stop us.
        compiler = next(filter(which, (os.environ.get("CC", ""), "cc", "gcc", "clang")), None)
        if compiler:
            patch.setenv("CC", f"{compiler} -Werror")
        yield home


@pytest.fixture(scope="module")
def kernel_builds(_kept: Path, _shared_home: Path) -> Iterator[None]:
    """Kernels as users have them; only the compiler's own headers are read in another way."""
    with _compiler_with_headers(_kept, "-O3"):
        yield


@pytest.fixture(scope="module")
def fault_builds(_kept: Path, _shared_home: Path) -> Iterator[None]:
    """The same for programs that are built to have a fault, which `lockstep` builds at -O0."""
    with _compiler_with_headers(_kept, "-O0"):
        yield


@pytest.fixture(scope="module")
def quick_builds(request: pytest.FixtureRequest, _kept: Path, _shared_home: Path) -> Iterator[None]:
    """Programs that are built in a third of the time: in the plain run, without optimisation.

    For tests of what is done with a program. No bit depends on the level, as test_codegen.py shows;
    tests of kernels, and slow ones, build as users do.
    """
    if request.config.getoption("-m") != "not slow":
        yield
        return
    with _compiler_with_headers(_kept, "-Og", Path(__file__).parent / "quick_cc"):
        yield


@contextmanager
def _compiler_with_headers(kept: Path, level: str, *wrapper: Path) -> Iterator[None]:
    """$CC with precompiled headers for this level, behind a program that changes its arguments."""
    with pytest.MonkeyPatch.context() as patch:
        if command := shlex.split(os.environ.get("CC", "")):
            with_headers = with_intrinsics(command, kept / "precompiled", level)
            patch.setenv("CC", shlex.join([*map(str, wrapper), *with_headers]))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LOCKSTEP_HOME of this test's own."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("LOCKSTEP_HOME", str(directory))
    return directory


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Global generators start the same in every test, in whatever order the tests run."""
    random.seed(0)
    np.random.seed(0)  # for libraries that draw from the global generator
    if "torch" in sys.modules:
        # `manual_seed` would note where it was called from, for each device that is not there.
        sys.modules["torch"].default_generator.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def chromium() -> str:
    """The path of a Chromium; for tests marked `browser`."""
    path = find_chromium()
    assert path is not None, "mark the test with `browser`, so that it is skipped without Chromium"
    return path
