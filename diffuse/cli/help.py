"""`diffuse COMMAND --help`."""

from hydra.core.global_hydra import GlobalHydra

USAGE = {
    "train": "fit a diffusion model to a data set, into outputs/<name>",
    "sample": "draw images from a trained run, into <run>/samples/<time>",
    "eval": "score a trained run, by likelihood and by its samples, into <run>/eval/<time>",
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
        "variance": "of the reverse steps: fixed_small, fixed_large, learned (by loss=hybrid or vlb) or analytic",
        "schedule.levels": "how many noise levels a table of betas has",
        "schedule.zero_terminal_snr": "rescale a table of betas so that its last level is pure noise",
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
        "eval.every": "steps between scores of samples, of which the best checkpoint is kept (null: none)",
        "eval.n": "images drawn for them",
        "eval.metrics": "a list of fid, kid, is, precision_recall, density_coverage, sfid; the first decides",
        "max_hours": "stop after so long, with a checkpoint (null: never)",
    },
    "sample": {
        "ckpt": "a run folder or a checkpoint file (required)",
        "n": "how many images",
        "seed": "image i depends on (seed, i) alone",
        "batch_size": "images in flight at once; changes no image on a processor",
        "data_dir": "where the data sets are now, for variance=analytic (null: where they were in training)",
        "dataset.path": "where the images of dataset=folder or npz are now (null: where they were)",
        "dataset.test_path": "the same for the file that dataset=npz tests on",
        "dataset.skip_bad": "leave out images of a folder that cannot be read",
        "label": "the class to draw, for a class-conditional run (default all in turn)",
        "sampler.steps": "levels walked through (null: every one); Langevin samplers call the network more often",
        "sampler.spacing": "uniform, to_zero, quadratic, log_snr or karras",
        "sampler.eta": "ddim: 0 is deterministic, 1 is ancestral",
        "sampler.variance": "of ddpm's steps: fixed_small, fixed_large, learned or analytic (null: the run's)",
        "sampler.corrector_steps": "predictor_corrector: Langevin steps at each level",
        "sampler.snr": "predictor_corrector: size of a Langevin step",
        "sampler.langevin_steps": "annealed_langevin: steps at each level",
        "sampler.step_size": "annealed_langevin: size of a step, in units of the level's variance",
        "sampler.clip": "keep the predicted x0 in [-1, 1] (null: yes for images)",
        "name": "the folder's name under <run>/samples",
        "trust": "packages of your own whose code the checkpoint's config may name",
    },
    "eval": {
        "ckpt": "a run folder or a checkpoint file",
        "metrics": "a list of bound, ode (bpd: both), fid, kid, is, precision_recall, density_coverage, sfid,"
        " memorisation",
        "n": "images drawn (null: 10000), test images of bound and ode (null: what takes about three minutes)",
        "samples": "images to score in place of drawn ones: a folder, an npz file or DATASET:SPLIT",
        "reference": "what they are held against: train or test of the run's data, a path (also to statistics),"
        " DATASET:SPLIT",
        "features.weights": "inception, classifier: a file with the network's weights (null: downloaded, or trained)",
        "features.path": "torchscript: the file",
        "sampler.steps": "levels walked through (null: every one)",
        "sampler.spacing": "uniform, to_zero, quadratic, log_snr or karras",
        "sampler.eta": "ddim: 0 is deterministic, 1 is ancestral",
        "label": "the class to draw, for a class-conditional run (default all in turn)",
        "levels": "noise levels of the bound (null: every one)",
        "variance": "of the bound's steps: fixed_small, fixed_large, learned or analytic (null: the run's)",
        "ode.solver": "rk45 (chooses its steps), rk4 or heun",
        "ode.tolerance": "rk45: relative and absolute error",
        "ode.steps": "rk4, heun: how many, evenly spaced in log-SNR",
        "ode.divergence": "hutchinson (estimated) or exact (one derivative a dimension)",
        "ode.probes": "hutchinson: random probes for each image",
        "ode.t_min": "where the flow begins (null: the smallest time trained at)",
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
    "train": (
        *("method", "dataset", "schedule", "prediction", "loss", "weight", "times"),
        *("unet", "device", "sampler", "features", "recipe"),
    ),
    "sample": ("sampler", "device"),
    "eval": ("features", "sampler", "device"),
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
