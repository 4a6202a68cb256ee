#!/usr/bin/env bash
# Linear against cosine, by a likelihood and by samples: Nichol and Dhariwal 2021, section 3.2 and table 2.
#
#   bash scripts/sweep_schedules.sh
#
# Cost: two trainings of 1,500 steps and four evaluations on the digits, 6 minutes on one core of a server.
# Expected: cosine better, at 20 steps more than at 100. The paper has its gain on 64 x 64 photographs, where the linear
# schedule's last levels are wasted on pure noise.
set -euo pipefail
train="diffuse train -m name=schedules method=ddpm class_conditional=false schedule=linear,cosine steps=1500"
evaluate="diffuse eval -m name=schedules-scored ckpt=outputs/schedules/0_schedule-linear,outputs/schedules/1_schedule-cosine sampler=ddpm sampler.steps=20,100 metrics=[fid,precision_recall,bound] levels=100 features=classifier n=1000"
$train
$evaluate
python "$(dirname "$0")/into_results.py" outputs/schedules-scored --title "linear against cosine on the digits" --command "$train" --command "$evaluate"
