"""The config of a training as its run records it: the same training in any folder, whatever defaults become."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffuse.data.images import ImageKind
from diffuse.mathematics.beta_ends import END_KEYS, ENDS, usual_ends
from diffuse.mathematics.spacings import uniform
from diffuse.mathematics.tables import read_betas
from diffuse.options.build import about
from diffuse.options.keys import Node
from diffuse.options.schema import TrainConfig
from diffuse.runs.recommended import resolved
from diffuse.runs.trained import TrainedNetwork
from diffuse.system.files import data_folder, run_path


def self_contained(config: TrainConfig) -> TrainConfig:
    """The config with absolute paths, and with betas in place of their file: it means the same in any folder.

    The ends of a table of betas that are null get their numbers, and the spacing of the times its name;
    sampler=method and auto become the sampler that they stand for, and without classes no label is dropped.
    """

    def absolute(node: Node, *keys: str) -> Node:
        paths = {key: node[key] for key in keys if isinstance(node.get(key), str)}
        return {**node, **{key: str(data_folder(path)) for key, path in paths.items()}}

    schedule = absolute(config.schedule, "path")
    if schedule.get("path") is not None and schedule.get("values", False) is None:
        with about("schedule"):
            schedule["values"] = read_betas(schedule["path"])
    if (name := schedule.get("_target_")) in ENDS and isinstance(levels := schedule.get("levels"), int) and levels > 0:
        for key, usual in zip(END_KEYS, usual_ends(name, levels), strict=True):
            if schedule.get(key, 0) is None and usual < 1:  # `build` refuses the others
                schedule[key] = usual
    sampler = resolved(config.sampler, config.prediction, config.sampler)
    if sampler.get("spacing", "") is None:
        sampler = {**sampler, "spacing": uniform.__name__}
    return replace(
        config,
        sampler=sampler,
        label_dropout=config.label_dropout if config.class_conditional else 0.0,
        data_dir=str(data_folder(config.data_dir)),
        dataset=absolute(config.dataset, "path", "test_path"),
        schedule=schedule,
        init=replace(config.init, ckpt=config.init.ckpt and str(run_path(config.init.ckpt).absolute())),
        features=absolute(config.features, "path", "weights"),
    )


def with_network_of(config: TrainConfig, network: TrainedNetwork, kind: ImageKind, typed: Sequence[str]) -> TrainConfig:
    """The config with the options of the given network, but for the keys that are typed.

    Attention stays on its levels: at another image size it has other resolutions.
    """
    found = dict(network.config.unet)
    before, now = min(network.kind.padded_size), min(kind.padded_size)
    if before != now:
        levels = range(len(found["channel_mult"]))
        found["attention"] = [now >> at for at in levels if before >> at in found["attention"]]
    return replace(config, unet={**found, **typed_options(config.unet, typed)})


def typed_options(unet: Node, typed: Sequence[str]) -> Node:
    """The options of a network that were typed: all of them where the group was."""
    return {key: value for key, value in unet.items() if "unet" in typed or f"unet.{key}" in typed}


def as_begun(config: TrainConfig, record: TrainConfig, typed: Sequence[str]) -> TrainConfig:
    """The config of a line that is given again: what init.ckpt chose then, it is not asked for again.

    The weights may be gone by now, and are not needed where there is a checkpoint.
    """
    if config.init.ckpt is None or record.init.ckpt is None:
        return config
    given, then = Path(config.init.ckpt), Path(record.init.ckpt)
    init = record.init if given.name == then.name and not given.exists() else config.init
    unet = {**record.unet, **typed_options(config.unet, typed)}
    return replace(config, unet=unet, init=replace(init, freeze=config.init.freeze))
