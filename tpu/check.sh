#!/usr/bin/env bash
# Runs tpu/self_check.py on the workers: prints versions, devices and the loss of one training
# step. Fails where no TPU is found.
#
# usage: tpu/check.sh --name=NAME --zone=ZONE [options]
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --worker=all       which workers: all, or a number
#   --project=PROJECT  default: that of `gcloud config`
#   --dry_run          print the commands, call nothing
#   --help             print this
declare -A option=([name]="" [zone]="" [worker]=all [project]="")
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_options "$@"
check_place
check_worker
find_place

check_tpu "${option[worker]}"
