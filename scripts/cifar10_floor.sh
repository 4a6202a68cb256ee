#!/usr/bin/env bash
# FID of the CIFAR-10 training set against its test set: what 10,000 fresh images get, and so a check of the protocol.
#
#   bash scripts/cifar10_floor.sh [features.weights=FILE] [data_dir=DIR] [reference=STATISTICS.npz]
#
# Cost: 60,000 images through Inception: a minute of a GPU, an hour of two cores of a server; 10,000 with statistics of
# the training set as reference.
# Expected: 3.15 (as published; the covariance of 10,000 images is what most of it comes from).
set -euo pipefail
diffuse eval samples=cifar10:test reference=cifar10:train "metrics=[fid]" name=cifar10-floor "$@"
