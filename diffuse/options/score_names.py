"""The names of scores: what `metrics=` takes, and of which values less, or more, is better."""

LIKELIHOODS = ("bound", "ode")
SAMPLE_SCORES = ("fid", "kid", "is", "precision_recall", "density_coverage", "sfid", "memorisation")
SYNONYMS = {"bpd": LIKELIHOODS}  # both give bits per dimension
# How the names of values begin of which less, or more, is better; of others, as of what tells of copies, neither is.
LESS_IS_BETTER = ("loss", *LIKELIHOODS, "fid", "kid", "sfid")
MORE_IS_BETTER = ("is", "precision", "recall", "density", "coverage")
# What drawing cost, and how far images are from the finest ones of a sweep.
EVALUATIONS, SECONDS, DISTANCE = "evaluations", "s_per_image", "distance"
METRICS = (*LIKELIHOODS, *SYNONYMS, *SAMPLE_SCORES)
