#!/usr/bin/env bash
# Installs a commit of this checkout on all workers, with the pinned versions of
# tpu/requirements.txt, in an environment with Python 3.11 of its own; mounts a bucket.
#
# usage: tpu/install.sh --name=NAME --zone=ZONE [options]
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --commit=HEAD      what to install
#   --bucket=BUCKET    mount gs://BUCKET at /gcs/BUCKET, for workdirs that outlive the TPU
#   --project=PROJECT  default: that of `gcloud config`
#   --dry_run          print the commands, call nothing
#   --help             print this
declare -A option=([name]="" [zone]="" [commit]=HEAD [bucket]="" [project]="")
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_options "$@"
check_place
check_bucket
find_place

install_package
