#!/usr/bin/env bash
# Asks for a TPU VM, or for a slice of several, by a queued resource, and waits until it is there.
# From then on it costs money, until tpu/delete.sh.
#
# usage: tpu/create.sh --name=NAME --zone=ZONE --accelerator_type=TYPE [options]
#
#   --name=NAME              of the TPU and of its queued resource
#   --zone=ZONE              where, such as us-west4-a
#   --accelerator_type=TYPE  family and size, such as v5litepod-8 (8 chips) or v4-8 (4 chips)
#   --spot                   cheaper, and may be taken away at any time (tpu/resume.sh)
#   --runtime_version=NAME   image of the VM; default: the base image of the accelerator type
#   --service_account=EMAIL  whose rights the VM has; default: the project's compute account
#   --project=PROJECT        default: that of `gcloud config`
#   --wait_minutes=60        how long to wait for it; the request stays in the queue
#   --poll_seconds=30        how often to ask
#   --dry_run                print the commands, call nothing
#   --help                   print this
declare -A option=([name]="" [zone]="" [accelerator_type]="" [spot]=false [runtime_version]=""
  [service_account]="" [project]="" [wait_minutes]=60 [poll_seconds]=30)
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_options "$@"
check_place
check_accelerator
check_wait
find_place

create_tpu
wait_until_active
