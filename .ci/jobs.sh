# Runs jobs, two at a time: one alone often leaves the second core idle. Shows what a job printed
# when the job has ended. The first job that fails stops the others. For .ci/run.
#
#   work=FOLDER        the logs go there
#   . .ci/jobs.sh
#   trap stop_jobs EXIT
#   job NAME "COMMAND ARGUMENTS"
#   run_jobs

names=()                         # of the jobs, in the order in which they start
commands=()                      # what each of them runs
declare -A running=() started=() # by process id: a job's name, and the second in which it began
seconds=()                       # a line for each job that has ended

# Add a job: its name, and its command.
job() {
  names+=("$1")
  commands+=("$2")
}

# Each job gets a process group of its own (set -m). Without one, a shell's background jobs ignore
# Ctrl-C, which tests send to the programs that they start.
start_job() {
  set -m
  ($2) </dev/null >"$work/$1.log" 2>&1 &
  set +m
  running[$!]=$1
  started[$!]=$SECONDS
  printf '\n=== %s begins (%d s)\n' "$1" "$SECONDS"
}

finish_job() { # PROCESS_ID EXIT_CODE
  local name=${running[$1]} took=$((SECONDS - started[$1]))
  unset "running[$1]"
  [ "$2" = 0 ] || stop_jobs
  printf '\n=== %s took %d s, and printed:\n' "$name" "$took"
  cat "$work/$name.log"
  if kill -KILL -- "-$1" 2>/dev/null; then
    printf '\n=== %s left processes behind: they are ended now\n' "$name"
  fi
  seconds+=("$(printf '%5d s  %s' "$took" "$name")")
  [ "$2" = 0 ] || {
    printf '\n=== FAILED: %s (exit code %d), after %d s\n' "$name" "$2" "$took"
    exit 1
  }
}

# End what still runs: by Ctrl-C, so that tests clear up; after 10 s for good.
stop_jobs() {
  local id groups=()
  [ ${#running[@]} -gt 0 ] || return 0
  for id in "${!running[@]}"; do
    groups+=("-$id")
    printf '\n=== %s is stopped; it printed last:\n' "${running[$id]}"
    tail -n 20 "$work/${running[$id]}.log" 2>/dev/null || true
  done
  kill -INT -- "${groups[@]}" 2>/dev/null || true
  for _ in {1..100}; do
    [ -n "$(jobs -rp)" ] || break
    sleep 0.1
  done
  kill -KILL -- "${groups[@]}" 2>/dev/null || true
  running=()
}

# Finish the jobs that have ended. `wait -n` would not tell of one that ends while another is started.
finish_ended_jobs() {
  local id code still
  still=$(jobs -rp)
  for id in "${!running[@]}"; do
    if ! grep -qx "$id" <<<"$still"; then
      code=0
      wait "$id" || code=$?
      finish_job "$id" "$code"
    fi
  done
}

run_jobs() {
  local next=0
  while [ "$next" -lt ${#names[@]} ] || [ ${#running[@]} -gt 0 ]; do
    if [ "$next" -lt ${#names[@]} ] && [ ${#running[@]} -lt 2 ]; then
      start_job "${names[next]}" "${commands[next]}"
      next=$((next + 1))
    else
      sleep 0.2
      finish_ended_jobs
    fi
  done
}

