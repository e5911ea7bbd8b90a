"""Files of the safe format and the JSON beside them that lie: through load_weights, load_model and the command line.

The files are made in `payloads.py`, which is also the process that reads them where memory, opened files or sockets
are watched.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import payloads
from payloads import GPT2, MODELS, Job, Place, one_line

from llmt.checkpoints.weights import load_weights
from llmt.errors import LlmtError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, plants links and pipes")

Environment = dict[str, str]
Results = dict[str, dict[str, Any]]

PEAK = 300 * 2**20
GROWTH = 200 * 2**20
SOCKETS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"}
MALFORMED = payloads.malformed()
NETWORKS = list(MODELS)


@pytest.fixture(scope="module")
def online(environment: Environment) -> Environment:
    """The environment of a stranger's shell, in which nothing forbids the network."""
    return payloads.without_forbidding(environment)


def is_library(path: str, places: tuple[str, ...]) -> bool:
    """Whether a file belongs to Python, to an installed package, to llmt or to the system, or lies in `places`."""
    source = str(Path(payloads.__file__).parents[2] / "llmt")
    known = (sys.prefix, sys.base_prefix, source, "/proc/", "/sys/", "/usr/", "/lib", "/etc/ssl", "/dev/null")
    return path.startswith((*known, *places))


# ---------------------------------------------------------------------------------------------------------
# headers


def alone(directory: Path, data: bytes) -> tuple[Path, str]:
    """A file that is named itself."""
    (directory / "evil.safetensors").write_bytes(data)
    return directory / "evil.safetensors", "evil.safetensors"


def of_a_model(directory: Path, data: bytes) -> tuple[Path, str]:
    """The one weight file of a model directory."""
    (directory / "model.safetensors").write_bytes(data)
    return directory, "model.safetensors"


def as_a_shard(directory: Path, data: bytes) -> tuple[Path, str]:
    """One of two shards, beside a good one."""
    (directory / "a.safetensors").write_bytes(data)
    (directory / "b.safetensors").write_bytes(payloads.safetensors({"b": (2,)}))
    weight_map = {"a": "a.safetensors", "b": "b.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory, "a.safetensors"


@pytest.mark.parametrize("lay_out", [alone, of_a_model, as_a_shard])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused(name: str, lay_out: Any, tmp_path: Path) -> None:
    """Named itself, in a model or as a shard, it ends in exit code 4 and one line that names the file."""
    source, file = lay_out(tmp_path, MALFORMED[name])
    with pytest.raises(LlmtError) as caught:
        load_weights(source)
    assert caught.value.exit_code == 4
    assert str(tmp_path) in caught.value.message
    assert file in caught.value.message
    assert one_line(caught.value.message)
    assert caught.value.hint


def test_the_table_is_complete() -> None:
    """More than the twenty-five cases that were asked for; and a good file is read."""
    assert len(MALFORMED) >= 25
    assert len(set(MALFORMED.values())) == len(MALFORMED)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """What the table varies is, unvaried, a file that loads."""
    for data in (payloads._one(), payloads.safetensors({"a": (1,)})):
        source, _ = alone(tmp_path, data)
        assert load_weights(source)["a"].shape == (1,)


PLANTED = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link in a circle": lambda path: [path.symlink_to("other"), path.with_name("other").symlink_to(path.name)],
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link out": lambda path: path.symlink_to("../outside.safetensors"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json", "a.safetensors"])
def test_what_is_no_file_in_a_model_is_refused(name: str, file: str, tmp_path: Path) -> None:
    """A pipe, folder, device or link in the place of weights or index exits with 4 and is not waited for."""
    (tmp_path / "outside.safetensors").write_bytes(payloads.safetensors({"a": (1,)}))
    model = tmp_path / "model"
    model.mkdir()
    as_a_shard(model, payloads.safetensors({"a": (1,)}))
    if file == "model.safetensors":
        (model / "model.safetensors.index.json").unlink()
    (model / file).unlink(missing_ok=True)
    PLANTED[name](model / file)
    with pytest.raises(LlmtError) as caught:
        load_weights(model)
    assert caught.value.exit_code == 4
    assert str(model) in caught.value.message


HEADER_READERS = {"read_header": "llmt.checkpoints.header", "load_weights": "llmt.checkpoints.weights"}


@pytest.fixture(scope="module", params=["read_header", pytest.param("load_weights", marks=pytest.mark.slow)])
def header_bombs(
    request: pytest.FixtureRequest, online: Environment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Results]:
    """A reader, the one of headers alone or load_weights, and how it refused each large header."""
    folder, call = tmp_path_factory.mktemp("headers"), request.param
    jobs = []
    for number, (name, data) in enumerate(payloads.header_bombs().items()):
        path = folder / f"bomb-{number}.safetensors"
        path.write_bytes(data)
        jobs.append(Job(name, call, [str(path)], fork=True))
    results = payloads.run_jobs(jobs, folder / "scratch", online, (HEADER_READERS[call],), timeout=500)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return call, results


@pytest.mark.parametrize("name", payloads.header_bombs())
def test_a_large_header_is_refused_in_little_memory(header_bombs: tuple[str, Results], name: str) -> None:
    """It is refused with exit code 4, 200 MiB above the start at most, and without torch below 300 MiB in all."""
    call, results = header_bombs
    result = results[name]
    print(json.dumps({"bomb": f"{call} {name}", **{key: result[key] for key in ("code", "cpu", "peak", "grown")}}))
    assert result["code"] == 4, result
    assert result["grown"] < GROWTH
    assert call == "load_weights" or result["peak"] < PEAK
    assert "bomb-" in result["message"]
    assert one_line(result["message"])


# ---------------------------------------------------------------------------------------------------------
# indexes

INDEXES = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}


@pytest.fixture(scope="module", params=[".bin", pytest.param(".safetensors", marks=pytest.mark.slow)])
def index_bombs(
    request: pytest.FixtureRequest, online: Environment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Results]:
    """The ending of the files, and how each large index of such was refused."""
    folder, ending = tmp_path_factory.mktemp("indexes"), request.param
    jobs = []
    for number, (name, data) in enumerate(payloads.index_bombs(ending).items()):
        model = folder / f"{number}{ending}"
        model.mkdir()
        (model / INDEXES[ending]).write_bytes(data)
        arguments = [str(model)] if ending == ".safetensors" else [str(model), str(folder / "out")]
        call = "load_weights" if ending == ".safetensors" else "convert"
        jobs.append(Job(name, call, arguments, fork=True))
    preload = ("llmt.checkpoints.weights",) if ending == ".safetensors" else ()
    results = payloads.run_jobs(jobs, folder / f"scratch{ending}", online, preload, timeout=500)
    for path in folder.glob("*/*.json"):
        path.unlink()
    return ending, results


@pytest.mark.parametrize("name", payloads.index_bombs(".bin"))
def test_a_large_index_is_refused_in_little_memory(index_bombs: tuple[str, Results], name: str) -> None:
    """It is refused with exit code 4, 200 MiB above the start at most, and without torch below 300 MiB in all."""
    ending, results = index_bombs
    result = results[name]
    print(json.dumps({"bomb": f"{ending} {name}", **{key: result[key] for key in ("code", "cpu", "peak", "grown")}}))
    assert result["code"] == 4, result
    assert result["grown"] < GROWTH
    assert ending == ".safetensors" or result["peak"] < PEAK
    # Of the many files that one index lists, the first that is not there may be named instead.
    assert "index.json" in result["message"] or "m-" in result["message"]
    assert one_line(result["message"])


NAMES = list(payloads.index_names(".bin", Path("/outside")))


@pytest.fixture(scope="module")
def index_attacks(online: Environment, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """How each hostile name in an index was refused, by each of the readers, and what was opened on the way."""
    results: Results = {}
    for reader, ending in (("load_weights", ".safetensors"), ("convert", ".bin"), ("llama", ".safetensors"),
                           ("gpt2", ".safetensors")):  # fmt: skip
        folder = tmp_path_factory.mktemp(f"attacks-{reader}")
        outside = folder / "outside"
        jobs = []
        for number, (name, hostile) in enumerate(payloads.index_names(ending, outside).items()):
            model = folder / f"model-{number}"
            _lay_out_shards(model, outside, ending, reader, hostile)
            arguments = [str(model), str(folder / f"out-{number}")] if reader == "convert" else [str(model)]
            call = "load_model" if reader in MODELS else reader
            jobs.append(Job(f"{reader} {name}", call, arguments, watch=str(outside)))
        preload = {"convert": (), "load_weights": ("llmt.checkpoints.weights",)}.get(reader, ("llmt.models.load",))
        found = payloads.run_jobs(jobs, folder / "scratch", online, preload)
        for job in jobs:
            known = (job.arguments[0] + "/", str(folder / "scratch"))
            opened = [path for path in found[job.name]["opened"] if not is_library(os.path.normpath(path), known)]
            results[job.name] = found[job.name] | {"outside": opened, "folder": str(folder)}
    return results


def _lay_out_shards(model: Path, outside: Path, ending: str, reader: str, hostile: object) -> None:
    """A model of two shards: one that is good, and one that the index calls by a hostile name."""
    config, tensors = MODELS.get(reader, ({}, {"a": (4,), "b": (4,)}))
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    *kept, last = tensors
    if ending == ".bin":
        there = payloads.archive(payloads.encode({"a": payloads.tensor()}))
        away = payloads.archive(payloads.encode({"b": payloads.tensor()}))
    else:
        there, away = (payloads.safetensors({name: tensors[name] for name in names}) for names in (kept, [last]))
    (model / f"good{ending}").write_bytes(there)
    payloads.plant_index_targets(model, outside, ending, away)
    index = {"metadata": {"total_size": 32}, "weight_map": {**dict.fromkeys(kept, f"good{ending}"), last: hostile}}
    (model / INDEXES[ending]).write_text(json.dumps(index))


@pytest.mark.parametrize("reader", ["load_weights", "convert", *NETWORKS])
@pytest.mark.parametrize("name", NAMES)
def test_an_index_cannot_lead_out_of_its_directory(index_attacks: Results, name: str, reader: str) -> None:
    """A hostile name is refused with exit code 4 in one line; no file outside the directory and no socket is opened."""
    result = index_attacks[f"{reader} {name}"]
    assert result["code"] == 4, result["message"]
    assert result["outside"] == []
    assert result["watched"] == []
    assert not SOCKETS & set(result["events"])
    assert len(result["message"]) < 2000
    assert result["folder"] in result["message"]


def test_names_in_an_index_do_not_reach_the_terminal(online: Environment, tmp_path: Path) -> None:
    """`llmt convert` and `llmt generate` refuse each hostile name in two lines of printable text."""
    jobs = []
    for reader, ending in (("convert", ".bin"), ("llama", ".safetensors")):
        for number, (name, hostile) in enumerate(payloads.index_names(ending, tmp_path / reader / "outside").items()):
            model = tmp_path / reader / str(number)
            model.parent.mkdir(exist_ok=True)
            _lay_out_shards(model, tmp_path / reader / "outside", ending, reader, hostile)
            arguments = {"convert": ["convert", str(model)], "llama": ["generate", str(model), "--prompt", "x"]}[reader]
            jobs.append(Job(f"{reader} {name}", "command", arguments))
    results, shown = payloads.on_a_terminal(jobs, tmp_path / "scratch", online)
    assert {name: result["code"] for name, result in results.items() if result["code"] != 4} == {}
    text = shown.decode("utf-8").replace("\r\n", "\n")
    assert payloads.unsafe(text) == set()
    assert len([line for line in text.splitlines() if line.startswith("error: ")]) == len(jobs)
    assert "Traceback" not in text


def test_there_are_enough_hostile_names() -> None:
    """More than the thirty that were asked for, for each of the two indexes."""
    assert len(NAMES) >= 30


# ---------------------------------------------------------------------------------------------------------
# which tensors


def changed_tensors(tensors: dict[str, tuple[int, ...]]) -> dict[str, tuple[dict[str, tuple[int, ...]], str]]:
    """Sets of tensors that do not fit the model: name -> the tensors, and the one that has to be named."""
    name = next(name for name in tensors if "layers.0" in name or "h.0" in name)
    without = {key: shape for key, shape in tensors.items() if key != name}
    return {
        "missing": (without, name),
        "extra": ({**tensors, "evil.weight": (2,)}, "evil.weight"),
        "renamed": ({**without, f"{name}.evil": tensors[name]}, name),
        "renamed by case": ({**without, name.upper(): tensors[name]}, name),
        "of another layer": ({**tensors, name.replace(".0.", ".7."): tensors[name]}, name.replace(".0.", ".7.")),
        "of another shape": ({**tensors, name: (*tensors[name], 1)}, name),
        "transposed": ({**tensors, name: (4, tensors[name][0] * 2)}, name),
        "without elements": ({**tensors, name: (0,)}, name),
        "all missing": ({"evil.weight": (2,)}, ""),
        "none at all": ({}, ""),
    }


CHANGES = list(changed_tensors(MODELS["llama"][1]))


@pytest.fixture(scope="module")
def networks(online: Environment, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """How every hostile model directory was taken by load_model, in one process."""
    folder = tmp_path_factory.mktemp("networks")
    place = payloads.plant(tmp_path_factory.mktemp("place"))
    outside = folder / "outside"
    outside.mkdir()
    (outside / "x.safetensors").write_bytes(payloads.safetensors(MODELS["gpt2"][1]))
    jobs = []
    for network, (config, tensors) in MODELS.items():
        models = {f"good {network}": (config, tensors)}
        models |= {f"{network} {name}": (config, changed) for name, (changed, _) in changed_tensors(tensors).items()}
        for name, settings in {**payloads.FORBIDDEN_SETTINGS, **payloads.ODD_SETTINGS}.items():
            models[f"{network} {name}"] = (config | settings, tensors)
        for name, (written, held) in models.items():
            path = payloads.write_model(folder / str(len(jobs)), written, held)
            (path / "evil_code.py").write_text(f"{place.script}\nclass Model: pass\nclass Config: pass\n")
            jobs.append(Job(name, "load_model", [str(path)], watch=str(outside), root=str(place.root)))
    jobs += _more_networks(folder, outside, place, len(jobs))
    results = payloads.run_jobs(jobs, folder / "scratch", online, ("llmt.models.load", "transformers.models.gpt2"))
    for job in jobs:
        known = (f"{job.arguments[0]}/", str(folder / "scratch"))
        opened = [path for path in results[job.name]["opened"] if not is_library(os.path.normpath(path), known)]
        results[job.name] |= {"outside": opened}
    return results


def _more_networks(folder: Path, outside: Path, place: Place, begin: int) -> list[Job]:
    """Directories whose other files are hostile: pickles in the place of weights, an adapter, sizes of a giant."""
    jobs = []
    evil = payloads.archive(payloads.encode(payloads.call("os:system", place.shell)))
    plain = payloads.encode(payloads.call("os:system", place.shell))
    for network, (config, tensors) in MODELS.items():
        for name, data in (("archive", evil), ("plain pickle", plain)):
            for file in ("pytorch_model.bin", "model.safetensors", "adapter_model.bin", "consolidated.00.pth"):
                path = folder / str(begin + len(jobs))
                path.mkdir()
                (path / "config.json").write_text(json.dumps(config))
                (path / file).write_bytes(data)
                jobs.append(Job(f"{network} {name} {file}", "load_model", [str(path)], root=str(place.root)))
        path = payloads.write_model(folder / str(begin + len(jobs)), config, tensors)
        adapter = {"base_model_name_or_path": str(outside), "peft_type": "LORA"}
        (path / "adapter_config.json").write_text(json.dumps(adapter))
        jobs.append(Job(f"{network} adapter", "load_model", [str(path)], watch=str(outside), root=str(place.root)))
        for name, sizes in payloads.LARGE_SETTINGS.items():
            path = payloads.write_model(folder / str(begin + len(jobs)), config | sizes, tensors)
            jobs.append(Job(f"{network} {name}", "load_model", [str(path)], fork=True))
    payloads.write_model(folder / "real-outside", GPT2, MODELS["gpt2"][1])
    for path in (folder / "real-outside").iterdir():
        path.rename(outside / path.name)
    return jobs


@pytest.mark.parametrize("network", NETWORKS)
def test_a_good_model_loads(networks: Results, network: str) -> None:
    """What the hostile directories vary is, unvaried, a model that loads without a socket."""
    result = networks[f"good {network}"]
    assert result["code"] == 0, result["message"]
    assert not SOCKETS & set(result["events"])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", CHANGES)
def test_the_tensors_have_to_be_those_of_the_model(networks: Results, name: str, network: str) -> None:
    """A missing, added, renamed or reshaped tensor ends in exit code 4 or 5, with its name in the one line."""
    result = networks[f"{network} {name}"]
    assert result["code"] in (4, 5), result["message"]
    assert changed_tensors(MODELS[network][1])[name][1] in result["message"]
    assert one_line(result["message"])


@pytest.mark.parametrize("change", ["missing", "extra", "renamed"])
def test_shards_have_to_hold_what_the_index_lists(change: str, tmp_path: Path) -> None:
    """A tensor that is not in its shard, or in a shard and not in the index, ends in exit code 4 with its name."""
    shapes = {"missing": {}, "extra": {"a": (4,), "evil": (1,)}, "renamed": {"evil": (4,)}}
    as_a_shard(tmp_path, payloads.safetensors(shapes[change]))
    with pytest.raises(LlmtError) as caught:
        load_weights(tmp_path)
    assert caught.value.exit_code == 4
    assert ("'a'" if change == "missing" else "'evil'") in caught.value.message or "'a'" in caught.value.message


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", payloads.FORBIDDEN_SETTINGS)
def test_a_configuration_that_asks_for_code_is_refused(networks: Results, name: str, network: str) -> None:
    """auto_map, trust_remote_code, kernels and quantisers in config.json exit with 4; nothing is run or fetched."""
    result = networks[f"{network} {name}"]
    assert not result["happened"]
    assert not SOCKETS & set(result["events"])
    assert result["outside"] == []
    assert result["code"] == 4, (result["code"], result["message"])
    assert "config.json" in result["message"]
    assert one_line(result["message"])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [*payloads.ODD_SETTINGS, "adapter"])
def test_a_configuration_leads_nowhere_else(networks: Results, name: str, network: str) -> None:
    """Other settings with paths, addresses or code are passed over or refused; nothing outside is opened or run."""
    result = networks[f"{network} {name}"]
    assert not result["happened"]
    assert not SOCKETS & set(result["events"])
    assert result["watched"] == []
    assert result["outside"] == []
    assert result["code"] in (0, 4, 5), (result["code"], result["message"])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["archive", "plain pickle"])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin", "consolidated.00.pth"])
def test_a_model_is_never_read_from_a_pickle(networks: Results, file: str, kind: str, network: str) -> None:
    """Where there are no safetensors, a model is refused with exit code 4; a pickle in its place does not run."""
    result = networks[f"{network} {kind} {file}"]
    assert not result["happened"]
    assert result["code"] == 4, (result["code"], result["message"])
    assert not {"pickle.find_class", "os.system"} & set(result["events"])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", payloads.LARGE_SETTINGS)
def test_a_configuration_of_a_giant_is_refused_in_little_memory(networks: Results, name: str, network: str) -> None:
    """Sizes that no weights fit end in exit code 4 or 5, before anything of that size is made."""
    result = networks[f"{network} {name}"]
    print(json.dumps({"bomb": f"{network} {name}", **{key: result[key] for key in ("code", "cpu", "peak", "grown")}}))
    allowed = (0, 4, 5) if "context" in name else (4, 5)
    assert result["code"] in allowed, (result["code"], result["message"])
    assert result["grown"] < GROWTH
    assert one_line(result["message"])


def test_hostile_names_of_tensors_do_not_reach_the_terminal(online: Environment, tmp_path: Path) -> None:
    """A model with a tensor of a hostile name is refused by `llmt generate` in printable text, and never opened."""
    config, tensors = MODELS["llama"]
    jobs = []
    for number, name in enumerate(payloads.hostile_names()):
        for kind, held in {"extra": {**tensors, name: (1,)}, "only": {name: (1,)}}.items():
            model = payloads.write_model(tmp_path / f"{number}-{kind}", config, held)
            jobs.append(Job(f"{number} {kind}", "command", ["generate", str(model), "--prompt", "x"]))
    assert len(jobs) >= 100
    results, shown = payloads.on_a_terminal(jobs, tmp_path / "scratch", online)
    assert {name: result["code"] for name, result in results.items() if result["code"] not in (4, 5)} == {}
    text = shown.decode("utf-8").replace("\r\n", "\n")
    assert payloads.unsafe(text) == set()
    assert "Traceback" not in text
