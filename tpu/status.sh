#!/usr/bin/env bash
# Prints the state of the queued resource: WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, FAILED,
# SUSPENDED (preempted), ...
#
# usage: tpu/status.sh --name=NAME --zone=ZONE [options]
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --project=PROJECT  default: that of `gcloud config`
#   --wait             wait until it is ACTIVE; exit code 1 if it will not be
#   --wait_minutes=60  how long to wait
#   --poll_seconds=30  how often to ask
#   --dry_run          print the commands, call nothing
#   --help             print this
declare -A option=([name]="" [zone]="" [project]="" [wait]=false [wait_minutes]=60
  [poll_seconds]=30)
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_options "$@"
check_place
check_wait
find_place

if [ "${option[wait]}" = true ]; then
  wait_until_active
else
  queue_state
fi
