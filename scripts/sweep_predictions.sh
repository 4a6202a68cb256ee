#!/usr/bin/env bash
# What the network says and what its loss is: Ho et al. 2020, table 2; Salimans and Ho 2022, table 1.
#
#   bash scripts/sweep_predictions.sh
#
# Cost: six trainings of 1,500 steps and six evaluations on the digits, 12 minutes on one core of a server.
# Expected: eps and v alike in samples, x0 behind them with a much worse bound (its loss does not care for what the lowest levels need); hybrid
# better than simple in the bound, for every prediction.
set -euo pipefail
train="diffuse train -m name=predictions method=ddpm class_conditional=false prediction=eps,v,x0 loss=simple,hybrid steps=1500"
$train
runs=$(ls -d outputs/predictions/[0-9]* | paste -sd,)
evaluate="diffuse eval -m name=predictions-scored ckpt=$runs metrics=[fid,precision_recall,bound] levels=100 features=classifier n=1000"
$evaluate
python "$(dirname "$0")/into_results.py" outputs/predictions-scored --title "prediction and loss on the digits" --command "$train" --command "${evaluate/$runs/outputs\/predictions\/0_...,1_...,...}"
