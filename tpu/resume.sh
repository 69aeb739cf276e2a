#!/usr/bin/env bash
# Brings a run back after preemption: deletes what is left of the TPU, creates it again, installs,
# checks, and launches the same command, which goes on from its workdir in the bucket. Takes the
# options of create.sh, install.sh and launch.sh. Does nothing where the run is going or has ended
# well, and does only what is missing where a step failed: it may be called again and again.
#
# usage: tpu/resume.sh --name=NAME --zone=ZONE --accelerator_type=TYPE [options] -- COMMAND...
#
#   --name=NAME              of the TPU and of its queued resource
#   --zone=ZONE              where it is
#   --accelerator_type=TYPE  as it was created
#   --spot                   create it as a spot TPU again
#   --runtime_version=NAME   image of the VM; default: the base image of the accelerator type
#   --service_account=EMAIL  whose rights the VM has; default: the project's compute account
#   --commit=HEAD            what to install
#   --bucket=BUCKET          mount gs://BUCKET at /gcs/BUCKET
#   --worker=all             which workers run the command: all, or a number
#   --project=PROJECT        default: that of `gcloud config`
#   --wait_minutes=60        how long to wait for the TPU; the request stays in the queue
#   --poll_seconds=30        how often to ask
#   --dry_run                print the commands of a preempted TPU, call nothing
#   --help                   print this
declare -A option=([name]="" [zone]="" [accelerator_type]="" [spot]=false [runtime_version]=""
  [service_account]="" [commit]=HEAD [bucket]="" [worker]=all [project]="" [wait_minutes]=60
  [poll_seconds]=30)
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

node_state() { # READY, PREEMPTED, ...: the TPU's own state, which a queued resource follows late
  run "ask for the TPU's state" "$same_command, or tpu/delete.sh $(place)" \
    gcloud compute tpus tpu-vm describe "${option[name]}" "${zone[@]}" "--format=value(state)"
}

run_state() { # running, finished, ...: what worker.sh says of the launched command
  local first=${option[worker]}
  [ "$first" != all ] || first=0
  on_workers "ask for the run's state" "$same_command" "$first" \
    "bash $worker_script state 2>/dev/null || echo absent"
}

create_again() {
  delete_tpu
  create_tpu
  wait_until_active
}

make_ready() { # leaves a TPU without a run, or exits where there is nothing to do
  local state
  state=$(queue_state)
  say "the queued resource is $state"
  case $state in
    ACTIVE)
      state=$(node_state)
      say "the TPU is $state"
      case $state in
        READY) leave_if_running ;;
        PREEMPTED | TERMINATED | STOPPED) create_again ;;
        *) fail "the TPU is $state. To go on: $same_command in a minute" ;;
      esac
      ;;
    SUSPENDED | FAILED) create_again ;;
    SUSPENDING | DELETING) fail "the TPU is going away. To go on: $same_command in a minute" ;;
    *) wait_until_active ;;
  esac
}

leave_if_running() {
  local state
  state=$(run_state)
  say "the run is $state"
  case $state in
    running) exit 0 ;;
    finished) exit 0 ;;
  esac
}

# shellcheck disable=SC2034 # read in common.sh
takes_command=true resumes=true
parse_options "$@"
check_place
check_accelerator
check_wait
check_bucket
check_worker
check_command
find_place

if [ "${option[dry_run]}" = true ]; then
  queue_state
  echo "# where it says SUSPENDED or FAILED:"
  create_again
else
  make_ready
fi
install_package
check_tpu "${option[worker]}"
launch_command "${option[worker]}"
