#!/usr/bin/env bash
# Prints the end of the log of the command that tpu/launch.sh started.
#
# usage: tpu/logs.sh --name=NAME --zone=ZONE [options]
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --worker=0         whose log: the number of a worker, or all
#   --lines=100        how many lines
#   --follow           go on printing until Ctrl-C, which does not touch the run
#   --project=PROJECT  default: that of `gcloud config`
#   --dry_run          print the commands, call nothing
#   --help             print this
declare -A option=([name]="" [zone]="" [worker]=0 [lines]=100 [follow]=false [project]="")
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_options "$@"
check_place
check_worker
check_option lines '[0-9]{1,7}' "a number of lines"
find_place

follow=""
[ "${option[follow]}" = false ] || follow=" -F"
on_workers "print the log" \
  "a log is there once tpu/launch.sh has run; tpu/status.sh $(place) tells if the TPU is there" \
  "${option[worker]}" "tail -n ${option[lines]}$follow keras_vmoe/run/log"
