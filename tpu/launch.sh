#!/usr/bin/env bash
# Starts a command on the workers and comes back. The command goes on when the connection ends; its
# output goes to a log on each worker (tpu/logs.sh).
#
# usage: tpu/launch.sh --name=NAME --zone=ZONE [options] -- COMMAND...
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --worker=all       which workers: all, or a number
#   --project=PROJECT  default: that of `gcloud config`
#   --dry_run          print the commands, call nothing
#   --help             print this
#
# For instance, with the bucket mounted by `tpu/install.sh --bucket=BUCKET`:
#
#   tpu/launch.sh --name=vmoe-1 --zone=us-west4-a -- \
#     keras-vmoe train --gin_file=runs/quickstart.gin --workdir=/gcs/BUCKET/quickstart
declare -A option=([name]="" [zone]="" [worker]=all [project]="")
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2034 # read in common.sh
takes_command=true
parse_options "$@"
check_place
check_worker
check_command
find_place

launch_command "${option[worker]}"
