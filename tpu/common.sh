# shellcheck shell=bash
# What the scripts of this folder share: options, steps, and the calls of gcloud. A script sets the
# defaults of its options in `option`, sources this file, and calls parse_options "$@".
set -euo pipefail

# The `checkout` of this very script, and the folder on a worker (below its home).
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
worker_script=keras_vmoe/checkout/tpu/worker.sh
self="tpu/$(basename "$0")"
# The words after `--`.
command_words=()

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$self: bash $BASH_VERSION is too old; install bash 4.4 or newer" >&2
  exit 1
fi
declare -A option

# ---- messages ----

say() { echo "$self: $*" >&2; }

fail() { # fail MESSAGE: something went wrong
  say "error: $*"
  exit 1
}

usage_error() { # usage_error MESSAGE: the command line is wrong
  say "error: $*; see $self --help"
  exit 2
}

print_help() { # the comment that a script begins with
  sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
}

# ---- options ----

option_names() {
  local names
  names=$(printf -- '--%s\n' "${!option[@]}" help | sort | tr '\n' ' ')
  echo "${names% }"
}

parse_options() { # fills `option` and `command_words`
  option[dry_run]=false
  local name
  while (($#)); do
    case $1 in
      --help | -h)
        print_help
        exit 0
        ;;
      --)
        shift
        [[ -v takes_command ]] || usage_error "unexpected '--': $self takes no command"
        command_words=("$@")
        return
        ;;
      --*)
        name=${1#--}
        name=${name%%=*}
        [[ -v option[$name] ]] || usage_error "unknown option $1; the options are $(option_names)"
        set_option "$name" "$1"
        ;;
      *) usage_error "unexpected word '$1'; options are written --name=VALUE" ;;
    esac
    shift
  done
}

set_option() { # set_option NAME WORD: WORD is --NAME=VALUE, or --NAME of a switch
  local switch=false
  case ${option[$1]} in true | false) switch=true ;; esac
  case $2 in
    *=*)
      [ "$switch" = false ] || usage_error "$2: --$1 is a switch; write --$1 without a value"
      [ -n "${2#*=}" ] || usage_error "--$1 is empty; write --$1=VALUE"
      option[$1]=${2#*=}
      ;;
    *)
      [ "$switch" = true ] || usage_error "--$1 has no value; write --$1=VALUE"
      option[$1]=true
      ;;
  esac
}

require() { # require NAME EXAMPLE
  [ -n "${option[$1]}" ] || usage_error "--$1 is missing; for instance --$1=$2"
}

check_option() { # check_option NAME REGEX WHAT
  [[ ${option[$1]} =~ ^($2)$ ]] || usage_error "--$1=${option[$1]} is not $3"
}

check_place() { # the options that every script has
  require name vmoe-1
  check_option name '[a-z]([-a-z0-9]{0,60}[a-z0-9])?' \
    "a TPU's name: lower case letters, digits and '-', from a letter on, such as vmoe-1"
  require zone us-west4-a
  check_option zone '[a-z]+-[a-z]+[0-9]+-[a-z]+[0-9]*[a-z]?' "a zone, such as us-west4-a"
}

check_accelerator() { # fills in the runtime version that belongs to the accelerator type
  require accelerator_type v5litepod-8
  check_option accelerator_type '(v2|v3|v4|v5litepod|v5p|v6e)-[1-9][0-9]*' \
    "an accelerator type, such as v4-8, v5litepod-8, v5p-8 or v6e-8"
  check_size "${option[accelerator_type]%-*}" "${option[accelerator_type]##*-}"
  [ -z "${option[runtime_version]}" ] || return 0
  case ${option[accelerator_type]} in
    v5litepod-*) option[runtime_version]=v2-alpha-tpuv5-lite ;;
    v5p-*) option[runtime_version]=v2-alpha-tpuv5 ;;
    v6e-*) option[runtime_version]=v2-alpha-tpuv6e ;;
    *) option[runtime_version]=tpu-ubuntu2204-base ;;
  esac
}

check_size() { # check_size FAMILY NUMBER
  local given=--accelerator_type=$1-$2
  case $1 in
    v5litepod | v6e)
      [[ $2 =~ ^(1|4|8|16|32|64|128|256)$ ]] ||
        usage_error "$given: $1 has 1, 4, 8, 16, 32, 64, 128 or 256 chips"
      ;;
    *)
      (($2 % 8 == 0)) ||
        usage_error "$given: the number counts cores of $1, two a chip, four chips a host; for \
instance $1-8"
      ;;
  esac
}

check_wait() {
  check_option wait_minutes '[0-9]{1,6}' "a number of minutes"
  check_option poll_seconds '[0-9]{1,6}' "a number of seconds"
}

check_worker() { check_option worker 'all|[0-9]{1,4}' "'all' or the number of a worker"; }

check_bucket() {
  [ -z "${option[bucket]}" ] ||
    check_option bucket '[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]' "a bucket's name (without gs://)"
}

check_command() { # the words after `--` that launch.sh and resume.sh run on the workers
  ((${#command_words[@]})) ||
    usage_error "the command is missing; for instance -- keras-vmoe train --gin_file=FILE"
  local words=" ${command_words[*]} "
  # The trainers write through the file system, where gs://x would be a local folder named "gs:".
  if [[ $words =~ \ --?workdir[=\ ](gs://[^ ]*) ]]; then
    usage_error "--workdir=${BASH_REMATCH[1]} is no folder; mount the bucket \
(--bucket=NAME of install.sh and resume.sh) and write --workdir=/gcs/NAME/..."
  fi
  [[ $words == */gcs/* ]] ||
    say "warning: the command names no path below /gcs/: what it writes is lost with the TPU"
}

# ---- steps ----

quote() { # quote WORD...: as a line that a shell reads back as the same words
  local word line="" mark="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      line+="$word "
    else
      line+="'${word//\'/$mark}' "
    fi
  done
  echo "${line% }"
}

# run STEP HINT COMMAND...: carries out one step; with --dry_run it only prints the command. HINT
# says how to go on if it fails. What the command prints is this function's output.
run() {
  local step=$1 hint=$2 status=0
  shift 2
  if [ "${option[dry_run]}" = true ]; then
    echo "# $step"
    quote "$@"
    return
  fi
  say "$step: $(quote "$@")"
  "$@" || status=$?
  # resume.sh finds out by itself what is missing.
  [[ ! -v resumes ]] || hint=$same_command
  ((status == 0)) || fail "step '$step' failed (exit code $status). To go on: $hint"
}

same_command="give the same command again"

# This TPU's options, for a command line of another script.
place() { quote "--name=${option[name]}" "--zone=${option[zone]}" "${project[@]}"; }

# ---- gcloud ----

# find_place: to be called once the options are checked.
find_place() {
  project=()
  [ -z "${option[project]}" ] || project=("--project=${option[project]}")
  zone=("--zone=${option[zone]}" "${project[@]}")
  [ "${option[dry_run]}" = true ] || command -v gcloud >/dev/null ||
    fail "gcloud is not on PATH; install it (https://cloud.google.com/sdk/docs/install), or \
look at the commands with --dry_run"
}

create_tpu() {
  local extra=()
  [ "${option[spot]}" = false ] || extra+=(--spot)
  [ -z "${option[service_account]}" ] || extra+=("--service-account=${option[service_account]}")
  run "create the queued resource" \
    "mend what gcloud says above (quota, zone, a name in use: tpu/delete.sh), then $same_command" \
    gcloud compute tpus queued-resources create "${option[name]}" "${zone[@]}" \
    "--node-id=${option[name]}" "--accelerator-type=${option[accelerator_type]}" \
    "--runtime-version=${option[runtime_version]}" "${extra[@]}"
}

queue_state() { # prints a state of queued resources: ACTIVE, SUSPENDED, ...
  run "ask for the state" \
    "see whether it exists: gcloud compute tpus queued-resources list $(quote "${zone[@]}")" \
    gcloud compute tpus queued-resources describe "${option[name]}" "${zone[@]}" \
    "--format=value(state.state)"
}

wait_until_active() {
  local state began=$SECONDS
  if [ "${option[dry_run]}" = true ]; then
    echo "# again and again, until it says ACTIVE:"
    queue_state
    return
  fi
  while true; do
    state=$(queue_state)
    say "the queued resource is $state"
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        fail "step 'wait for the TPU' failed: the queued resource is $state. To go on: tpu/delete.sh \
$(place), then create it again; the reason is in: gcloud compute tpus queued-resources describe \
${option[name]} $(quote "${zone[@]}")"
        ;;
    esac
    ((SECONDS - began < option[wait_minutes] * 60)) ||
      fail "step 'wait for the TPU' failed: still $state after ${option[wait_minutes]} minutes. It \
stays in the queue. To go on: tpu/status.sh $(place) --wait, or tpu/delete.sh $(place)"
    sleep "${option[poll_seconds]}"
  done
}

delete_tpu() {
  run "delete the queued resource and its TPU" \
    "$same_command; until it is gone, it may cost money" \
    gcloud compute tpus queued-resources delete "${option[name]}" "${zone[@]}" --force --quiet
}

on_workers() { # on_workers STEP HINT WORKERS COMMAND: COMMAND is one shell line
  run "$1" "$2" gcloud compute tpus tpu-vm ssh "${option[name]}" "${zone[@]}" \
    "--worker=$3" "--command=$4"
}

install_package() {
  local commit archive hint
  hint="the TPU is there and costs money; tpu/install.sh $(place)"
  [ -z "${option[bucket]}" ] || hint+=" --bucket=${option[bucket]}"
  commit=$(git -C "$checkout" rev-parse --short=12 --verify --quiet "${option[commit]}^{commit}") ||
    usage_error "--commit=${option[commit]} is no commit of $checkout"
  [ -z "$(git -C "$checkout" status --porcelain 2>/dev/null)" ] ||
    say "warning: changes that are not committed stay behind; $commit is what gets installed"
  archive=keras_vmoe-$commit.tar.gz
  run "pack commit $commit" "$hint" git -C "$checkout" archive --prefix=checkout/ \
    "--output=${TMPDIR:-/tmp}/$archive" "$commit"
  run "copy it to all workers" "$hint" gcloud compute tpus tpu-vm scp \
    "${TMPDIR:-/tmp}/$archive" "${option[name]}:" "${zone[@]}" --worker=all
  on_workers "install on all workers" "$hint" all \
    "mkdir -p keras_vmoe && rm -rf keras_vmoe/checkout && tar -xzf $archive -C keras_vmoe && \
bash $worker_script install ${option[bucket]}"
}

check_tpu() { # check_tpu WORKERS
  on_workers "self-check" "read what the check says above; tpu/check.sh $(place)" "$1" \
    "bash $worker_script check"
}

launch_command() { # launch_command WORKERS
  on_workers "launch" \
    "tpu/logs.sh $(place) shows what the command said; a run that is going: tpu/stop.sh $(place)" \
    "$1" "bash $worker_script launch $(quote "${command_words[@]}")"
}
