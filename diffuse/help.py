"""`diffuse COMMAND --help`."""

from hydra.core.global_hydra import GlobalHydra

USAGE = {
    "train": "fit a diffusion model to a data set, into outputs/<name>",
    "sample": "draw images from a trained run, into <run>/samples/<time>",
    "eval": "variational bound of a trained run on the test split, into <run>/eval/<time>",
}

# The keys that people change. The README has the same table; a test holds both against the configs.
KEYS = {
    "train": {
        "name": "the run's folder under outputs/ (default <dataset>-<schedule>-<unet>/<time>)",
        "resume": "a run folder to continue",
        "seed": "decides every random number",
        "data_dir": "where data sets lie, or are downloaded to and prepared",
        "trust": "packages of your own whose code a config may name",
        "steps": "steps of training",
        "batch_size": "images in a step",
        "class_conditional": "train on labels too",
        "optim.lr": "peak learning rate of AdamW",
        "optim.warmup": "steps of linear warm-up",
        "optim.decay": "none, linear or cosine, over the whole run",
        "optim.clip": "largest gradient norm",
        "optim.weight_decay": "AdamW's",
        "ema.decay": "of the averaged weights that are sampled from",
        "checkpoint.every": "steps between checkpoints",
        "checkpoint.keep": "how many of the newest are kept",
        "checkpoint.milestone_every": "steps between checkpoints that are kept for good (null: none)",
        "images.every": "steps between sample grids",
        "images.count": "images in a grid",
        "log.every": "steps between lines of metrics",
        "max_hours": "stop after so long, with a checkpoint (null: never)",
    },
    "sample": {
        "ckpt": "a run folder or a checkpoint file (required)",
        "n": "how many images",
        "seed": "image i depends on (seed, i) alone",
        "batch_size": "images in flight at once; changes no image on a processor",
        "label": "the class to draw, for a class-conditional run (default all in turn)",
        "sampler.steps": "network evaluations for each image (null: every level)",
        "sampler.spacing": "uniform, quadratic or log_snr",
        "sampler.eta": "ddim: 0 is deterministic, 1 is ancestral",
        "sampler.variance": "ddpm: fixed_small or fixed_large",
        "sampler.clip": "keep the predicted x0 in [-1, 1] (null: yes for images)",
        "name": "the folder's name under <run>/samples",
        "trust": "packages of your own whose code the checkpoint's config may name",
    },
    "eval": {
        "ckpt": "a run folder or a checkpoint file (required)",
        "n": "test images (null: what takes about two minutes)",
        "levels": "noise levels of the bound (null: every one)",
        "variance": "of the reverse steps: fixed_small or fixed_large",
        "clip": "keep the predicted x0 in [-1, 1] (null: yes for images)",
        "seed": "decides the images and the noise",
        "batch_size": "images in flight at once",
        "data_dir": "where the data sets are now (null: where they were in training)",
        "dataset.path": "where the images of dataset=folder or npz are now (null: where they were)",
        "dataset.test_path": "the same for the file that dataset=npz tests on",
        "dataset.skip_bad": "leave out images of a folder that cannot be read",
        "name": "the folder's name under <run>/eval",
        "trust": "packages of your own whose code the checkpoint's config may name",
    },
}

GROUPS = {
    "train": ("dataset", "schedule", "unet", "device", "sampler", "recipe"),
    "sample": ("sampler", "device"),
    "eval": ("device",),
}


def help_of(command: str) -> str:
    """The page for a command: its groups with their options, and the keys people change."""
    command = command if command in USAGE else "train"
    loader = GlobalHydra.instance().config_loader()
    width = max(map(len, (*GROUPS[command], *KEYS[command]))) + 2
    groups = "\n".join(f"  {group:{width}}{', '.join(loader.get_group_options(group))}" for group in GROUPS[command])
    keys = "\n".join(f"  {key:{width}}{what}" for key, what in KEYS[command].items())
    choice = {"train": "dataset=folder", "sample": "sampler=ddim"}.get(command, "device=cpu")
    return (
        f"diffuse {command}: {USAGE[command]}\n\n"
        f"usage: diffuse {command} [group=option ...] [key=value ...] [-m]\n\n"
        f"groups\n{groups}\n\nkeys\n{keys}\n\n"
        f"Every key, those of the options included: diffuse {command} --cfg job, after a choice like {choice}\n"
        "-m with comma-separated values runs a sweep; -cd DIR adds options of your own; --hydra-help says more\n"
    )
