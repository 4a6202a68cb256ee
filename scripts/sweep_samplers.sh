#!/usr/bin/env bash
# Samplers at few and many steps: Song, Meng and Ermon 2021, table 1, and Bao et al. 2022, table 1.
#
#   bash scripts/sweep_samplers.sh
#
# Cost: one training of 1,500 steps and twelve evaluations on the digits, 6 minutes on one core of a server.
# Expected: at 10 steps ddim is far better than ddpm; at 100 they are near. analytic_ddim is better than ddim on CIFAR-10
# (the paper), and was not on the digits (docs/results.md).
set -euo pipefail
train="diffuse train name=for-samplers method=ddpm class_conditional=false steps=1500"
evaluate="diffuse eval -m name=samplers ckpt=outputs/for-samplers sampler=ddpm,ddim,analytic_ddim sampler.steps=10,20,50,100 metrics=[fid,precision_recall] features=classifier n=1000"
$train
$evaluate
python "$(dirname "$0")/into_results.py" outputs/samplers --title "samplers, by steps" --command "$train" --command "$evaluate"
