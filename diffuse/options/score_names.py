"""The names of scores: what `metrics=` takes, and which of them should be small or large."""

LIKELIHOODS = ("bound", "ode")
SAMPLE_SCORES = ("fid", "kid", "is", "precision_recall", "density_coverage", "sfid", "agreement", "memorisation")
SYNONYMS = {"bpd": LIKELIHOODS}  # both give bits per dimension
# Prefixes of the names of scores that should be small, and large. Other values, as those of memorisation, are neither.
LESS_IS_BETTER = ("loss", *LIKELIHOODS, "fid", "kid", "sfid")
MORE_IS_BETTER = ("accuracy", "is", "precision", "recall", "density", "coverage", "agreement")
# What drawing cost, and how far images are from the finest ones of a sweep.
EVALUATIONS, SECONDS, DISTANCE = "evaluations", "s_per_image", "distance"
METRICS = (*LIKELIHOODS, *SYNONYMS, *SAMPLE_SCORES)
