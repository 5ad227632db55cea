"""The learnable gates: training, checkpoints, files of weights, and the report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from runs import MakeOptions, table

from rsattn.cli.command import CommandError
from rsattn.finetune import evaluation, initial_features, running, training
from rsattn.finetune.checkpoint import KEY, remembered
from rsattn.finetune.classifier import Classifier, freeze
from rsattn.finetune.compare import Entrant, compare
from rsattn.finetune.gates import gates_of, sizes_of_gates
from rsattn.finetune.loading import label, load
from rsattn.finetune.models import Built, build
from rsattn.finetune.options import Options, read_options
from rsattn.finetune.prediction import predict
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.schedule import share_of_rate

GATED: dict[str, Any] = {"init_values": 0.0, "gate_rate": 5e-3}
TIMM, WITH_LAYER_SCALE = "vit_tiny_patch16_224", "deit3_small_patch16_224"
STEPS = 40


def trained(options: Options, console: Console) -> RunFolder:
    running.run(options, console)
    return RunFolder(Path(options.out))


def gates_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Name of a block -> its gate, from the checkpoint of a resvit."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    names = {name: name.removeprefix("model.").removesuffix(".gamma") for name in state if name.endswith(".gamma")}
    return {short: state[name] for name, short in names.items()}


@pytest.fixture
def optimizer_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Classifier, Any, Any]]:
    """Options -> the classifier, optimizer and schedule of a run before the first of `STEPS` steps."""
    monkeypatch.setattr(Classifier, "trainer", SimpleNamespace(estimated_stepping_batches=STEPS))

    def configured(options: Options, learns: Callable[[str], bool] | None = None) -> tuple[Classifier, Any, Any]:
        classifier = Classifier(options, ("a", "b"), build(options, 2))
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(parameter.requires_grad if learns is None else learns(name))
        made = classifier.configure_optimizers()
        schedule = made["lr_scheduler"]["scheduler"]
        monkeypatch.setattr(classifier, "lr_schedulers", lambda: schedule)
        return classifier, made["optimizer"], schedule

    return configured


@pytest.mark.parametrize(("name", "patch"), [("resvit", False), (WITH_LAYER_SCALE, True)])
def test_gates_and_nothing_else_have_a_rate_of_their_own(
    name: str, patch: bool, make_options: MakeOptions, optimizer_of: Callable[..., Any]
) -> None:
    """Other parameters named gamma, such as timm's LayerScale, do not count."""
    classifier, optimizer, _ = optimizer_of(make_options(model=name, patch=patch, image_size=32, **GATED))
    matrices, others, gates = optimizer.param_groups
    expected = [id(module.gamma) for module in classifier.model.modules() if hasattr(module, "options")]
    assert [id(parameter) for parameter in gates["params"]] == expected
    assert len(expected) in (4, 12)
    assert [group["initial_lr"] for group in (matrices, others, gates)] == [2e-3, 2e-3, 5e-3]
    assert [group["weight_decay"] for group in (matrices, others, gates)] == [0.05, 0.0, 0.0]
    assert {parameter.dim() > 1 for parameter in matrices["params"]} == {True}
    assert {parameter.dim() > 1 for parameter in others["params"]} == {False}
    everything = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(everything) == sorted(map(id, classifier.parameters()))


def test_without_a_rate_of_their_own_gates_have_that_of_the_rest(
    make_options: MakeOptions, optimizer_of: Callable[..., Any]
) -> None:
    _, optimizer, _ = optimizer_of(make_options(init_values=0.0))
    assert {group["initial_lr"] for group in optimizer.param_groups} == {2e-3}


def test_all_rates_rise_and_fall_together(make_options: MakeOptions, optimizer_of: Callable[..., Any]) -> None:
    _, optimizer, schedule = optimizer_of(make_options(**GATED))
    for step in range(STEPS):
        share = share_of_rate(step, STEPS, 0.05)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([2e-3 * share, 2e-3 * share, 5e-3 * share])
        optimizer.step()
        schedule.step()


PARTS: dict[str, tuple[Callable[[str], bool], list[float]]] = {
    "all": (lambda name: True, [2e-3, 2e-3, 5e-3]),
    "no matrices": (lambda name: name.endswith(("gamma", "bias")), [2e-3, 5e-3]),
    "gates only": (lambda name: name.endswith("gamma"), [5e-3]),
    "no gates": (lambda name: not name.endswith("gamma"), [2e-3, 2e-3]),
    "a matrix": (lambda name: name == "model.fc.weight", [2e-3]),
}


@pytest.mark.parametrize(("learns", "rates"), PARTS.values(), ids=PARTS)
def test_no_group_is_empty_and_the_rate_that_is_told_is_never_the_gates(
    learns: Callable[[str], bool], rates: list[float], make_options: MakeOptions, optimizer_of: Callable[..., Any]
) -> None:
    classifier, optimizer, schedule = optimizer_of(make_options(**GATED), learns)
    assert [group["initial_lr"] for group in optimizer.param_groups] == rates
    assert all(group["params"] for group in optimizer.param_groups)
    for _ in range(STEPS // 2):
        optimizer.step()
        schedule.step()
    assert classifier._rate() == 2e-3 * share_of_rate(STEPS // 2, STEPS, 0.05)


def test_history_has_the_rate_of_the_rest(make_options: MakeOptions, console: Console) -> None:
    folder = trained(make_options(**GATED), console)
    rows = table(folder.history)
    steps = sum(row["split"] == "train" for row in table(folder.split)) // 8 + 1
    told = [float(row["learning_rate"]) for row in rows]
    assert told == [2e-3 * share_of_rate(steps * epoch, 3 * steps, 0.05) for epoch in (1, 2, 3)]


def test_gates_learn_and_metrics_tells_what_they_became(make_options: MakeOptions, console: Console) -> None:
    """The values of the tested epoch: with a learning rate that is far too high, the last one is not the best."""
    folder = trained(make_options(epochs=4, learning_rate=5e-2, **GATED), console)
    tested, last = gates_in(folder.best), gates_in(folder.last)
    metrics = json.loads(folder.metrics.read_text())
    told = metrics["gates"]
    assert (told["init_values"], told["rate"]) == (0.0, 5e-3)
    assert [block["name"] for block in told["blocks"]] == list(tested) == [f"transformer.blocks.{i}" for i in range(4)]
    for block, gate, later in zip(told["blocks"], tested.values(), last.values()):
        gate = gate.double()
        assert block["start"] == 0.0
        assert block["rms"] == pytest.approx(float(gate.pow(2).mean() ** 0.5))
        assert block["mean"] == pytest.approx(float(gate.mean()))
        assert block["largest"] == float(gate.abs().max()) > 0.0
        assert torch.equal(gate, later.double()) == (metrics["tested_epoch"] == 4)
    assert 'id="gates"' in folder.report.read_text()
    assert (folder.figures / "gates.png").exists()


@pytest.mark.parametrize("model", ["resvit", "vit"])
def test_without_gates_there_is_nothing_to_tell(model: str, make_options: MakeOptions, console: Console) -> None:
    folder = trained(make_options(model=model, epochs=1), console)
    assert json.loads(folder.metrics.read_text())["gates"] is None
    assert 'id="gates"' not in folder.report.read_text()
    assert not (folder.figures / "gates.png").exists()


def test_the_label_names_the_gate(make_options: MakeOptions) -> None:
    assert label(make_options(), {}) == "resvit (induced, sample, tile)"
    for start, told in ((0.0, "0"), (0.5, "0.5"), (-0.1, "-0.1"), (1e-60, "1e-60")):
        options = make_options(init_values=start)
        starts = sizes_of_gates(build(options, 2).model)
        assert len(starts) == 4
        assert label(options, starts) == f"resvit (induced, sample, tile, gate {told})"
    assert label(make_options(full_width=True, init_values=1e-4), {}).endswith("tile, full width, gate 0.0001)")


@pytest.mark.parametrize("full_width", [False, True])
def test_a_model_has_the_gates_asked_for(full_width: bool, make_options: MakeOptions) -> None:
    built = build(make_options(full_width=full_width, init_values=0.25), 3)
    assert [set(gate.tolist()) for gate in gates_of(built.model).values()] == [{0.25}] * 4
    assert not gates_of(build(make_options(full_width=full_width), 3).model)


def test_a_frozen_model_trains_the_gates_of_fresh_heads_only(make_options: MakeOptions) -> None:
    for full_width in (False, True):
        built = build(make_options(full_width=full_width, freeze=True, **GATED), 3)
        freeze(built.model, built.classifier)
        assert {gate.requires_grad for gate in gates_of(built.model).values()} == {full_width}


def test_a_frozen_model_keeps_its_gates_at_0_and_is_the_plain_one(
    make_options: MakeOptions, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of a file of weights are computed once for each split."""
    computed = []
    original = initial_features.features
    monkeypatch.setattr(initial_features, "features", lambda *given: computed.append(given[-1]) or original(*given))
    path = plain_weights(make_options, tmp_path)
    frozen: dict[str, Any] = {"freeze": True, "weights": str(path)}
    gated = trained(make_options(out=str(tmp_path / "gated"), init_values=0.0, **frozen), console)
    assert computed == ["features of the train split", "features of the val split"]
    plain = trained(make_options(out=str(tmp_path / "plain"), model="vit", **frozen), console)
    ungated = trained(make_options(out=str(tmp_path / "ungated"), **frozen), console)
    for gate in gates_in(gated.best).values():
        assert not gate.any()

    def probabilities(folder: RunFolder) -> list[float]:
        return [float(row["p_across"]) for row in table(folder.predictions)]

    # Another attention kernel: sums in another order, float32.
    assert probabilities(gated) == pytest.approx(probabilities(plain), abs=1e-4)
    assert probabilities(gated) != pytest.approx(probabilities(ungated), abs=1e-3)
    told = json.loads(gated.metrics.read_text())
    assert told["gates"]["rate"] is None
    assert told["model"]["trained_parameters"] == 96 * 2 + 2
    assert "The gates stayed at 0 (--freeze trains only the classifier)" in gated.report.read_text()


FROZEN = "resvit: its gates are frozen at 0, so it equals the plain model; --init-values none adds the residual"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"init_values": 0.0, "freeze": True}, 1),
        ({"init_values": 0.0, "gate_rate": 0.0}, 1),
        (GATED, 0),
        ({"init_values": 0.5, "freeze": True}, 0),
        ({"freeze": True}, 0),
        ({"full_width": True, "freeze": True, **GATED}, 0),
    ],
    ids=str,
)
def test_gates_frozen_at_0_are_told_before_they_are_trained(
    changes: dict[str, Any], told: int, make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), soft_wrap=True)
    told_before = []
    monkeypatch.setattr(training.Trainer, "fit", lambda *_, **__: told_before.append(said(console)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        running.run(make_options(**changes), console)
    assert told_before[0].count(f"note: {FROZEN}\n") == told


def test_gates_of_a_file_are_not_at_0(make_options: MakeOptions, tmp_path: Path) -> None:
    checkpoint(make_options(seed=5, init_values=0.0), tmp_path / "gated.ckpt")
    console = Console(file=io.StringIO(), soft_wrap=True)
    trained(make_options(weights=str(tmp_path / "gated.ckpt"), init_values=0.0, freeze=True, epochs=1), console)
    assert "its gates" not in said(console)


def test_a_comparison_tells_of_gates_frozen_at_0(make_options: MakeOptions, tmp_path: Path) -> None:
    """Both for new and for finished runs."""
    plain = make_options(model="vit", freeze=True, epochs=1)
    starts: dict[str, Any] = {"resvit": 0.0, "resvit:init-values=0.5": 0.5, "resvit:init-values=none": None}
    gated = [Entrant(name, replace(plain, model="resvit", init_values=start)) for name, start in starts.items()]
    for notes in (1, 0):
        console = Console(file=io.StringIO(), soft_wrap=True)
        assert compare([Entrant("vit", plain), *gated], [0], tmp_path / "all", console) == 0
        lines = said(console).splitlines()
        assert (lines.count(f"note: {FROZEN}"), lines.count(f"{FROZEN}.")) == (notes, 1)
        assert said(console).count("its gates") == notes + 1
    assert (tmp_path / "all" / "comparison.html").read_text().count(f"<li>{FROZEN}.</li>") == 1
    results = json.loads((tmp_path / "all" / "comparison.json").read_text())["results"]
    assert [result["gates_frozen_at_0"] for result in results] == [False, True, False, False]


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_another_gate_than_a_run_of_before_says_what_to_pass(make_options: MakeOptions) -> None:
    options = make_options()
    running.write_options(RunFolder(Path(options.out)), options)
    folder = RunFolder(Path(options.out))
    folder.checkpoints.mkdir()
    folder.last.touch()  # a run that trained nothing would be begun anew
    settings = r"\(init_values None, now 0.0, gate_rate None, now 0.005\)"
    with pytest.raises(
        CommandError, match=rf"{settings}; add --init-values none, because that run has no gate, choose an"
    ):
        running._begin(folder, make_options(**GATED))
    running.write_options(folder, make_options(**GATED))
    running._begin(folder, make_options(**GATED))
    for begun, asked in (
        (make_options(**GATED), make_options()),
        (make_options(**GATED), make_options(init_values=0.5, gate_rate=5e-3)),
        (make_options(), make_options(batch_size=9)),
        (make_options(model="vit"), make_options(**GATED)),
    ):
        running.write_options(folder, begun)
        with pytest.raises(CommandError, match=r"\); choose another --out, or"):
            running._begin(folder, asked)


def plain_weights(make_options: MakeOptions, tmp_path: Path, **changes: Any) -> Path:
    """A file with the weights of a plain model."""
    path = tmp_path / "plain.pt"
    torch.save(build(make_options(**{"model": "vit", "seed": 5, **changes}), 7).model.state_dict(), path)
    return path


def checkpoint(options: Options, path: Path) -> Built:
    """A checkpoint of a run of `options`, with random gates, and its model."""
    built = build(options, 2)
    with torch.no_grad():
        for number, gate in enumerate(gates_of(built.model).values()):
            gate.copy_(torch.randn(len(gate), generator=torch.Generator().manual_seed(number)))
    state = {f"model.{name}": value for name, value in built.model.state_dict().items()}
    kept = remembered(options, ("a", "b"), built.mean, built.std) | {"history": []}
    torch.save({"state_dict": state, KEY: kept}, path)
    return built


RESIDUAL = [("resvit", False), (TIMM, True)]


@pytest.mark.parametrize(("name", "patch"), RESIDUAL)
def test_gates_stay_at_their_start_where_a_file_has_none(
    name: str, patch: bool, make_options: MakeOptions, tmp_path: Path
) -> None:
    path = plain_weights(make_options, tmp_path, model=name if patch else "vit", image_size=64)
    options = make_options(model=name, patch=patch, image_size=64, weights=str(path), init_values=0.25)
    built = build(options, 3)
    assert {number for gate in gates_of(built.model).values() for number in gate.tolist()} == {0.25}
    for key, value in torch.load(path).items():
        if not key.startswith(built.classifier):
            assert torch.equal(built.model.state_dict()[key], value), key


@pytest.mark.parametrize(("name", "patch"), RESIDUAL)
@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
def test_gates_are_taken_from_a_file_that_has_them(
    name: str, patch: bool, kind: str, make_options: MakeOptions, tmp_path: Path
) -> None:
    options = make_options(model=name, patch=patch, image_size=64, seed=5, init_values=0.0)
    path = tmp_path / "gated.ckpt"
    given = checkpoint(options, path)
    if kind == "weights":
        torch.save(given.model.state_dict(), path)
    built = build(make_options(model=name, patch=patch, image_size=64, weights=str(path), init_values=0.0), 3)
    for key, value in given.model.state_dict().items():
        if not key.startswith(built.classifier):
            assert torch.equal(built.model.state_dict()[key], value), key


@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
@pytest.mark.parametrize(
    "changes", [{}, {"model": "vit"}, {"full_width": True}, {"full_width": True, **GATED}], ids=str
)
def test_gates_in_a_file_are_not_lost_in_silence(
    changes: dict[str, Any], kind: str, make_options: MakeOptions, tmp_path: Path
) -> None:
    path = tmp_path / "gated.ckpt"
    given = checkpoint(make_options(init_values=0.0), path)
    said = "gated.ckpt has gates of residual attention, which would be lost: .* --init-values 0 and no --full-width"
    if kind == "weights":
        torch.save(given.model.state_dict(), path)
        said = f"{said}|gated.ckpt does not fit .*: unknown transformer.blocks.{{0,1,2,3}}.gamma"
    with pytest.raises(CommandError, match=said) as raised:
        build(make_options(weights=str(path), **changes), 3)
    assert "\n" not in str(raised.value)


def test_some_gates_without_the_others_are_a_fault(make_options: MakeOptions, tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    state = build(make_options(**GATED), 3).model.state_dict()
    del state["transformer.blocks.2.gamma"]
    torch.save(state, path)
    with pytest.raises(CommandError, match=r"half.pt does not fit a tiny resvit: missing transformer.blocks.2.gamma"):
        build(make_options(weights=str(path), **GATED), 3)


def test_a_residual_without_gates_is_not_switched_off_in_silence(make_options: MakeOptions, tmp_path: Path) -> None:
    """Gates that start at 1 do not change the output of a model trained without gates."""
    path = tmp_path / "ungated.ckpt"
    given = checkpoint(make_options(), path)
    said = (
        r"the model of .*ungated.ckpt has a residual without a gate, .* starts at 0.5 .*: use --init-values none, or 1"
    )
    with pytest.raises(CommandError, match=said):
        build(make_options(weights=str(path), init_values=0.5), 2)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        given.model.fc.weight.copy_(torch.randn(2, 96))
        expected = given.model.eval()(images)
        for start in (None, 1.0):
            taken = build(make_options(weights=str(path), init_values=start), 2).model.eval()
            taken.fc.load_state_dict(given.model.fc.state_dict())
            # A gate rounds once, and no gate twice: float32.
            torch.testing.assert_close(taken(images), expected, atol=1e-5, rtol=1e-5)


def test_a_residual_without_gates_is_not_lost_in_silence(make_options: MakeOptions, tmp_path: Path) -> None:
    path = tmp_path / "ungated.ckpt"
    checkpoint(make_options(), path)
    with pytest.raises(CommandError, match=r"ungated.ckpt has residual attention, which would be lost"):
        build(make_options(model="vit", weights=str(path)), 2)


@pytest.mark.parametrize("changes", [{"norm": "confidence"}, {"scope": "batch"}, {"merge": "slot"}], ids=str)
@pytest.mark.parametrize(("name", "patch"), RESIDUAL)
def test_a_residual_is_not_replaced_by_another_in_silence(
    name: str, patch: bool, changes: dict[str, Any], make_options: MakeOptions, tmp_path: Path
) -> None:
    path = tmp_path / "trained.ckpt"
    model = {"model": name, "patch": patch, "image_size": 64}
    checkpoint(make_options(**model, **changes), path)
    fitting = {"norm": "induced", "scope": "sample", "merge": "tile"} | changes
    said = f"trained.ckpt was .*: use {' '.join(f'--{option} {value}' for option, value in fitting.items())}$"
    with pytest.raises(CommandError, match=said):
        build(make_options(**model, weights=str(path)), 2)
    build(make_options(**model, **changes, weights=str(path)), 2)


def test_weights_of_a_run_of_another_size_name_the_options_that_fit(make_options: MakeOptions, tmp_path: Path) -> None:
    path = tmp_path / "tiny.ckpt"
    checkpoint(make_options(), path)
    for changes in ({"size": "small", "image_size": 16}, {"image_size": 32}):
        with pytest.raises(CommandError, match=r"are those of another size of vit: use --size tiny --image-size 16$"):
            build(make_options(model="vit", weights=str(path), **changes), 2)


def test_a_run_that_starts_from_gates_of_a_file_tells_so(
    make_options: MakeOptions, console: Console, tmp_path: Path
) -> None:
    path = tmp_path / "gated.ckpt"
    given = checkpoint(make_options(seed=5, init_values=0.0), path)
    options = make_options(weights=str(path), epochs=1, **GATED)
    folder = trained(options, console)
    starts = [float(gate.detach().double().pow(2).mean() ** 0.5) for gate in gates_of(given.model).values()]
    assert min(starts) > 0.5
    assert [block["start"] for block in metrics_of(folder)["gates"]["blocks"]] == pytest.approx(starts)
    assert metrics_of(folder)["model"]["label"] == "resvit (induced, sample, tile)"
    resumed = Classifier(options, ("a", "b"), build(options, 2, with_weights=False))
    assert set(resumed.gates_at_start.values()) == {0.0}
    resumed.on_load_checkpoint(torch.load(folder.last, weights_only=True))
    assert list(resumed.gates_at_start.values()) == pytest.approx(starts)


def metrics_of(folder: RunFolder) -> Any:
    return json.loads(folder.metrics.read_text())


def make_older(folder: RunFolder) -> None:
    """Remove from a run what runs of versions without gates lack."""
    config = json.loads(folder.config.read_text())
    assert {config.pop("init_values", None), config.pop("gate_rate", None)} == {None}
    folder.config.write_text(json.dumps(config))
    for path in folder.checkpoints.iterdir():
        content = torch.load(path, weights_only=True)
        del content[KEY]["gates_at_start"]
        for name in ("init_values", "gate_rate"):
            content[KEY]["options"].pop(name, None)
        torch.save(content, path)


def test_runs_from_before_there_were_gates_go_on_and_load(
    make_options: MakeOptions, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(make_options(out=str(tmp_path / "whole")), console)
    options = make_options(out=str(tmp_path / "older"))
    folder = RunFolder(Path(options.out))
    original = training.LastCheckpoint.on_train_epoch_end

    def stop(self: object, trainer: object, module: object) -> None:
        original(self, trainer, module)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(training.LastCheckpoint, "on_train_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        running.run(options, console)
    monkeypatch.undo()
    make_older(folder)
    assert read_options(folder) == options
    trained(read_options(folder), console)
    assert folder.predictions.read_bytes() == whole.predictions.read_bytes()
    make_older(folder)
    loaded = load(folder.path)
    assert loaded.options.init_values is None
    assert loaded.label == "resvit (induced, sample, tile)"
    assert not gates_of(loaded.model)


def test_reports_of_runs_from_before_there_were_gates_are_still_made(
    make_options: MakeOptions, console: Console
) -> None:
    folder = trained(make_options(epochs=1), console)
    before = folder.report.read_bytes()
    metrics = metrics_of(folder)
    del metrics["gates"]
    folder.metrics.write_text(json.dumps(metrics))
    assert evaluation.write_report(folder.path).read_bytes() == before


def test_predict_takes_a_gated_run(make_options: MakeOptions, console: Console, stripes: Path, tmp_path: Path) -> None:
    """The predictions are those of the run, and not those of the model without its gates."""
    folder = trained(make_options(**{**GATED, "gate_rate": 5e-2}), console)
    tested = {row["file"]: float(row["p_across"]) for row in table(folder.predictions)}
    rows = table(predict(folder.path, [stripes / file for file in tested], tmp_path / "out", console))
    said = [float(row["p_across"]) for row in rows]
    # Batches of another size: sums in another order, float32.
    assert said == pytest.approx(list(tested.values()), abs=1e-4)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(tested)
    content = torch.load(folder.best, weights_only=True)
    for name, value in content["state_dict"].items():
        if name.endswith(".gamma"):
            value.zero_()
    torch.save(content, tmp_path / "closed.ckpt")
    closed = predict(tmp_path / "closed.ckpt", [stripes / file for file in tested], tmp_path / "closed", console, False)
    assert [float(row["p_across"]) for row in table(closed)] != pytest.approx(said, abs=1e-3)


def test_what_a_checkpoint_keeps_are_plain_values(make_options: MakeOptions, tmp_path: Path) -> None:
    """Then loading one runs no code."""
    options = make_options(**GATED)
    checkpoint(options, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)[KEY]["options"] == asdict(options)
    classifier = Classifier(options, ("a", "b"), build(options, 2))
    content: dict[str, Any] = {}
    classifier.on_save_checkpoint(content)
    assert content[KEY]["gates_at_start"] == {f"transformer.blocks.{i}": 0.0 for i in range(4)}
