#!/usr/bin/env bash
# Stops the command that tpu/launch.sh started, on all workers: `keras-vmoe train` saves a
# checkpoint first. The TPU stays, and costs money.
#
# usage: tpu/stop.sh --name=NAME --zone=ZONE [options]
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --project=PROJECT  default: that of `gcloud config`
#   --dry_run          print the commands, call nothing
#   --help             print this
declare -A option=([name]="" [zone]="" [project]="")
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_options "$@"
check_place
find_place

on_workers "stop the run" "$same_command, or tpu/delete.sh $(place)" all \
  "bash $worker_script stop"
