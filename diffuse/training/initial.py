"""A training that begins with given weights: those of a run, of a file, or of another program (`init.ckpt`)."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from diffuse.data.images import ImageKind
from diffuse.networks.unet import UNet
from diffuse.options.nested import Foreign, Init
from diffuse.runs.trained import TrainedNetwork, load
from diffuse.system.device import Device
from diffuse.system.errors import UsageError, UserError, did_you_mean
from diffuse.system.files import short_path
from diffuse.system.progress import log
from diffuse.system.sizes import in_words
from diffuse.training.setup import Training

NEW, HEAD, LABELS, AUGMENTATION = "new", "head.", "embed_label.weight", "embed_augmentation."


def given_weights(init: Init, foreign: Foreign, trust: Sequence[str]) -> TrainedNetwork:
    """The network of init.ckpt. Raises UsageError where it is not a U-Net that training can begin with."""
    device = Device("cpu", "float32")
    network = load(str(init.ckpt), device, trust, "init.ckpt", foreign, weights=init.weights)
    network.refuse_unused(foreign, "init.ckpt", str(init.ckpt))
    network.refuse_classifier("init.ckpt", str(init.ckpt))
    if not isinstance(network.net, UNet):
        raise UsageError(f"init.ckpt={init.ckpt} is not a U-Net of this program, with which a training can begin")
    return network


def begin_with_given(training: Training) -> None:
    """Put the weights of init.ckpt, if there is one, into the network and its average, and say what is new."""
    config, trainer = training.config, training.trainer
    if config.init.ckpt is None:
        return
    network = given_weights(config.init, config.foreign, config.trust)
    if config.classifies:
        raise UsageError("init.ckpt is a denoiser, and this training is of a classifier: leave it out")
    refuse_other_channels(network.kind, trainer.data.kind)
    refuse_another_prediction(config.prediction["_target_"], network, config.init)
    new = changed(network, training)
    state = trainer.net.state_dict()
    given = {**network.net.state_dict(), **new}
    refuse_another_network(given, state)
    for net in (trainer.net, *(average.net for average in trainer.all_averages)):
        net.load_state_dict({name: given[name].to(value.dtype) for name, value in state.items()})
    log.info(f"begins with {short_path(network.path)} ({network.in_words}, {network.sha256[:12]})")
    for said in differences(network, training, new):
        log.info(f"init: {said}")


def changed(network: TrainedNetwork, training: Training) -> dict[str, Tensor]:
    """The tensors that do not come from the given weights as they are: the head, and the rows of labels."""
    config, kind = training.config, training.trainer.data.kind
    fresh, old = training.trainer.net.state_dict(), network.net.state_dict()
    found: dict[str, Tensor] = {}
    if config.init.head == NEW:
        found |= {name: fresh[name].cpu() for name in fresh if name.startswith(HEAD)}
    elif len(fresh[f"{HEAD}bias"]) != len(old[f"{HEAD}bias"]):  # the prediction comes first, then the variance
        for name in (f"{HEAD}weight", f"{HEAD}bias"):
            found[name] = fresh[name].detach().cpu().clone()  # zeros
            both = min(len(found[name]), len(old[name]))
            found[name][:both] = old[name][:both]
    found |= {name: fresh[name].cpu() for name in fresh if name.startswith(AUGMENTATION) and name not in old}
    if (table := fresh.get(LABELS)) is not None:
        found[LABELS] = rows_of_labels(network, table.detach().cpu(), kind, bool(config.label_dropout))
    return found


def rows_of_labels(network: TrainedNetwork, table: Tensor, kind: ImageKind, null: bool) -> Tensor:
    """The table of labels: rows of classes with the same name are kept, new ones are those of the untrained network.

    Zeros in their place, with which the network is at first the one that is given, train more slowly: docs/results.md.
    """
    old = network.net.state_dict().get(LABELS)
    if old is None:
        return table
    before = {name: row for row, name in enumerate(network.condition.classes)} if network.knows_data else {}
    names: list[str | None] = [*kind.classes, *([None] if null else [])]
    null_before = len(old) - 1 if network.condition.dropout else None
    places = [null_before if name is None else before.get(name) for name in names]
    return torch.stack([new if place is None else old[place] for new, place in zip(table, places, strict=True)])


def refuse_other_channels(given: ImageKind, kind: ImageKind) -> None:
    """Raise UsageError where the given network is for images of another number of channels."""
    if given.channels != kind.channels:
        raise UsageError(
            f"the network of init.ckpt is for images of {given.channels} channels, and those of {kind.name} have "
            f"{kind.channels}: choose another dataset or init.ckpt"
        )


def refuse_another_prediction(asked: str, network: TrainedNetwork, init: Init) -> None:
    """Raise UsageError where the given head predicts something else than is trained."""
    given = network.config.prediction["_target_"]
    if asked != given and init.head != NEW:
        raise UsageError(
            f"prediction={asked}, and the network of init.ckpt predicts {given}: set prediction={given}, or "
            "init.head=new for a head that begins anew"
        )


def refuse_another_network(given: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise UserError where the given weights are those of a network with other options."""
    missing = [name for name in state if name not in given]
    other = [name for name in state if name in given and given[name].shape != state[name].shape]
    unused = [name for name in given if name not in state and name != LABELS and not name.startswith(AUGMENTATION)]
    if wrong := [*missing, *other, *unused]:
        name = wrong[0]
        shapes = [list(each[name].shape) if name in each else "absent" for each in (given, state)]
        raise UserError(
            f"the weights of init.ckpt do not fit the network of this training: {name} is {shapes[0]} there and "
            f"{shapes[1]} here. Leave out unet=... and unet.*: then the options are those of init.ckpt"
        )


def differences(network: TrainedNetwork, training: Training, new: Mapping[str, Tensor]) -> list[str]:
    """What differs from the training that the given weights come from, in sentences."""
    config, before, kind = training.config, network.config, training.trainer.data.kind
    found = []
    if kind.padded_size != network.kind.padded_size:
        found.append(f"images of {in_words(*kind.padded_size)} pixels, before {in_words(*network.kind.padded_size)}")
    if (kind.values, kind.shift, kind.scale) != (network.kind.values, network.kind.shift, network.kind.scale):
        found.append(f"other values behind what the network sees: {kind.in_words}, before {network.kind.in_words}")
    if config.init.head == NEW:
        found.append("a new head, whose output is 0 at the beginning")
    elif f"{HEAD}weight" in new:
        which = (
            "new outputs for the learned variance" if config.variance == "learned" else "no outputs for the variance"
        )
        found.append(which)
    old = set(network.condition.classes) if network.knows_data else set()
    if LABELS in new and network.condition.classes and not network.knows_data:
        found.append("labels: all new, since the names of those of init.ckpt are not known; foreign.dataset says them")
    elif LABELS in new and list(kind.classes) != list(network.condition.classes):
        kept = sum(name in old for name in kind.classes)
        found.append(f"labels: {kept} of {len(kind.classes)} classes keep their rows, the others are new")
    elif LABELS not in new and network.condition.classes:
        found.append("no labels: the rows of classes are left out")
    for group in ("schedule", "prediction"):
        then, now = (getattr(each, group) for each in (before, config))
        if then != now:
            found.append(f"{group} {now['_target_']}, before {then['_target_']}, or with other options")
    return found


def freeze(net: nn.Module, patterns: Sequence[str]) -> None:
    """Leave the parameters whose names fit a pattern (`down.*`) as they are. Raises UsageError where none is left."""
    names = [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            tops = sorted({name.partition(".")[0] for name in names})
            hint = did_you_mean(pattern.partition(".")[0], tops)
            raise UsageError(f"init.freeze: no parameter is called {pattern}; the parts are {', '.join(tops)}.{hint}")
    for name, weight in net.named_parameters():
        weight.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in patterns))
    sizes = [(weight.numel(), weight.requires_grad) for weight in net.parameters()]
    every, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    if not trained:
        raise UsageError("init.freeze leaves nothing to train: give fewer patterns")
    if patterns:
        log.info(f"{trained:,} of {every:,} parameters are trained (init.freeze)")
