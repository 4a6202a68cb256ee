#!/usr/bin/env bash
# The reverse variance at few and many steps, by samples: Bao et al. 2022, table 1, and Nichol and Dhariwal 2021, figure 8.
#
#   bash scripts/sweep_variances.sh
#
# Cost: one training of 1,500 steps and sixteen evaluations on the digits, 8 minutes on one core of a server.
# Expected: at 10 steps fixed_large is by far the worst. The best is analytic on CIFAR-10 (the paper), and was fixed_small on
# the digits (docs/results.md).
set -euo pipefail
train="diffuse train name=for-variances method=ddpm class_conditional=false loss=hybrid steps=1500"
evaluate="diffuse eval -m name=variances ckpt=outputs/for-variances sampler=ddpm sampler.variance=fixed_small,fixed_large,learned,analytic sampler.steps=10,25,50,100 metrics=[fid,precision_recall] features=classifier n=1000"
$train
$evaluate
python "$(dirname "$0")/into_results.py" outputs/variances --title "the reverse variance, by steps" --command "$train" --command "$evaluate"
