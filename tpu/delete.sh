#!/usr/bin/env bash
# Deletes the queued resource and its TPU, which then costs nothing. Buckets stay as they are;
# what lies on the TPU's own disk is lost.
#
# usage: tpu/delete.sh --name=NAME --zone=ZONE [options]
#
#   --name=NAME        of the TPU and of its queued resource
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

delete_tpu
