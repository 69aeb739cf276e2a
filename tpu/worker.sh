#!/usr/bin/env bash
# Runs on a TPU VM, called by the other scripts: installs, checks, launches, tells, stops.
#
# usage: bash worker.sh install [BUCKET] | check | launch COMMAND... | state | stop
#
# All lies below ~/keras_vmoe: checkout/, env/ (the virtual environment), run/ (log, pid, exit_code).
set -euo pipefail

home=$HOME/keras_vmoe
env=$home/env
run=$home/run
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
uv_version=0.13.8

fail() {
  echo "worker.sh on $(hostname): error: $*" >&2
  exit 1
}

install_package() { # install_package [BUCKET]
  [ "$(state)" != running ] || fail "a run is going (process $(cat "$run/pid")); tpu/stop.sh ends it"
  # The images' own Python is 3.10 and the package needs 3.11: uv brings one.
  curl -LsSf "https://astral.sh/uv/$uv_version/install.sh" |
    env UV_INSTALL_DIR="$home/bin" UV_NO_MODIFY_PATH=1 sh
  "$home/bin/uv" venv --quiet --clear --python=3.11 "$env"
  # Nothing is resolved here: requirements.txt names every package, so all workers are alike.
  "$home/bin/uv" pip install --quiet "--python=$env/bin/python" --no-deps \
    "--requirement=$here/requirements.txt" "$here/.."
  [ -z "${1-}" ] || mount_bucket "$1"
  echo "worker.sh on $(hostname): installed"
}

mount_bucket() { # mount_bucket BUCKET
  local folder=/gcs/$1 list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  if mountpoint -q "$folder"; then
    return
  fi
  if ! command -v gcsfuse >/dev/null; then
    curl -LsSf https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee "$list" >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -qq -y gcsfuse
  fi
  sudo mkdir -p "$folder"
  sudo chown "$(id -u):$(id -g)" "$folder"
  gcsfuse --implicit-dirs "$1" "$folder" ||
    fail "cannot mount gs://$1: does it exist, and may this VM's service account write to it?"
}

use_environment() {
  [ -x "$env/bin/python" ] || fail "nothing is installed; run tpu/install.sh"
  export PATH="$env/bin:$PATH"
  # TensorFlow's wheel finds the TPU through PJRT and the library of the libtpu wheel.
  export PJRT_DEVICE=TPU NEXT_PLUGGABLE_DEVICE_USE_C_API=true
  TF_PLUGGABLE_DEVICE_LIBRARY_PATH=$(python -c 'import libtpu; print(libtpu.get_library_path())')
  export TF_PLUGGABLE_DEVICE_LIBRARY_PATH
  export TF_XLA_FLAGS="${TF_XLA_FLAGS-} --tf_mlir_enable_mlir_bridge=true \
--tf_mlir_enable_convert_control_to_data_outputs_pass=true \
--tf_mlir_enable_merge_control_flow_pass=true"
}

state() { # running | finished | failed CODE | interrupted | absent
  local code
  if [ ! -e "$run/pid" ]; then
    echo absent
  elif kill -0 "$(cat "$run/pid")" 2>/dev/null; then
    echo running
  elif [ ! -e "$run/exit_code" ]; then
    echo interrupted
  else
    code=$(cat "$run/exit_code")
    if [ "$code" = 0 ]; then echo finished; else echo "failed $code"; fi
  fi
}

launch() { # launch COMMAND...
  (($#)) || fail "no command to launch"
  [ "$(state)" != running ] || fail "a run is going (process $(cat "$run/pid")); tpu/stop.sh ends it"
  mkdir -p "$run"
  rm -f "$run/exit_code"
  # A session of its own outlives this connection, and can be stopped as a whole.
  nohup setsid bash "$here/worker.sh" supervise "$@" >>"$run/log" 2>&1 </dev/null &
  echo $! >"$run/pid"
  # A mistyped command ends at once.
  sleep "${KERAS_VMOE_LAUNCH_SECONDS:-3}"
  case $(state) in
    running | finished) echo "worker.sh on $(hostname): $(state), process $(cat "$run/pid")" ;;
    *)
      tail -n 20 "$run/log" >&2
      fail "the command ended at once: $(state)"
      ;;
  esac
}

supervise() { # supervise COMMAND...: in the background, with the log as output
  local code=0
  # Stopping signals the whole session: the command ends, and this shell lives to note how.
  trap : TERM
  use_environment
  cd "$HOME"
  echo "worker.sh: $(date -u +%FT%TZ) begins: $*"
  "$@" || code=$?
  echo "$code" >"$run/exit_code"
  echo "worker.sh: $(date -u +%FT%TZ) ended with exit code $code"
}

stop() {
  local second
  if [ "$(state)" = running ]; then
    kill -TERM -- "-$(cat "$run/pid")"
    # The trainer saves a checkpoint first.
    for ((second = 0; second < 600; second++)); do
      [ "$(state)" = running ] || break
      sleep 1
    done
    [ "$(state)" != running ] || fail "the run is still going after 600 s"
  fi
  echo "worker.sh on $(hostname): $(state)"
}

case ${1-} in
  install) install_package "${@:2}" ;;
  check)
    use_environment
    python "$here/self_check.py" --require_tpu
    ;;
  launch) launch "${@:2}" ;;
  supervise) supervise "${@:2}" ;;
  state) state ;;
  stop) stop ;;
  *) fail "unknown command '${1-}'; known: install, check, launch, state, stop" ;;
esac
