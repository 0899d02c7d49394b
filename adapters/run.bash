#!/bin/bash -p
# Runs the `script` that lies beside it, as the scheduler would have run it, and keeps `record`: one line when the
# script started, one per signal the job was sent, one when the script ended. It ends as the script ended.
#
# -p: BASH_ENV and exported functions are the script's business, not this file's.
# Three processes: this one takes the signals, a keeper that ignores them waits for the script, and the script.
# bash's `wait` may lose the exit code when a trapped signal comes together with the child's death; the keeper traps
# nothing but CHLD. `$?` alone cannot tell `exit 137` from a kill -9; `jobs` can.
# Where no scheduler enforces a time limit, EXECUTE_TIME_LIMIT holds it in seconds.
# Where EXECUTE_SPARE names its directory, all this waits before the script is begun: see start.bash, and `be_spare`.
# What the environment has under names of ours, or of bash's that change what is done here, is the script's.
__kept=()
for __name in TMOUT posix here attempt signals signal limit told script watching expired out_from err_from out err \
  began how code over; do
  [ -z "${!__name+set}" ] || __kept+=("$__name=${!__name}")
done
unset TMOUT
__spare=''
[ "${EXECUTE_SPARE-}" != "${BASH_SOURCE[0]%/./run}" ] || __spare=yes
[ -z "$__spare" ] || unset EXECUTE_SPARE
posix=${POSIXLY_CORRECT+=$POSIXLY_CORRECT}
set +o posix
__here=${BASH_SOURCE[0]%/*} __here=${__here%/.}
here=$__here
[ -z "$__spare" ] || exec 9<"$here" # as this directory, whatever has its name later
attempt=${SLURM_RESTART_COUNT:-0}
signals='HUP INT QUIT USR1 USR2 ALRM TERM XCPU XFSZ VTALRM PROF IO PWR'
told='' how='' over='' script='' watching='' expired=''

now() { # seconds since the epoch, into `__now`
  __now=${EPOCHREALTIME:-}
  [ "$__now" ] || printf -v __now '%(%s)T' -1
}
note() { # EVENT FIELDS...: one line of tab-separated fields, and a mark in the directory that all jobs share
  local IFS=$'\t' event=$1 time=''
  shift
  case $event in
    started) time=$began ;;
    ended) time=$over ;;
  esac
  [ "$time" ] || { now; time=$__now; }
  printf '%s\n' "$event"$'\t'"attempt=$attempt"$'\t'"time=${time/,/.}"$'\t'"$*" >>"$here/record"
  [ "$event$__spare" != endedyes ] || tell # first, as to make a file takes longer
  : >"$here/../../events/${here##*/}.$attempt.$event"
}

tell() { # the connection that has begun this job what the record says, and what was printed if that is little
  local LC_ALL=C IFS='' text='' line='' words="ended ${here##*/}"
  read -r -d '' text <"$here/record"
  append_word
  line=$words
  little stdout && append_word && little stderr && append_word && ((${#words} < 4000)) && line=$words
  ((${#line} < 4000)) || return # lines that several write there are whole up to 4096 bytes
  trap '' PIPE # nobody may be there any more
  echo "$line" >&8
  trap - PIPE
}
little() { # FILE: its `text`, if it is short and holds no NUL byte
  text=''
  [ -f "$here/$1" ] && ! read -r -d '' -n 1000 text <"$here/$1"
}
append_word() {
  text=${text//\\/\\\\} text=${text// /\\s} text=${text//$'\n'/\\n}
  words+=" $text"
}

# Some schedulers signal every process of a job, some only this one, and nothing tells which. The canary does: where it
# died, the script has had the signal too; where it lives, the signal is handed on. So the script gets it exactly once.
# It says when it can be hurt, and it ends with this process, whose end of its pipe it reads.
breathe() {
  coproc CANARY { exec 8>&-; trap - $signals; echo; read -r; }
  read -r <&"${CANARY[0]}"
}
canary_lives() { [ -n "${CANARY_PID-}" ] && kill -0 "$CANARY_PID"; }
give_up_spare() { # which was sent a signal before it was for a job
  if [ "$__spare" ] && [ "$script" ] && [ ! "$watching" ] && [ ! -s "$here/script" ]; then kill -s KILL "$script"; fi
}
hand_on() {
  give_up_spare
  told=${told:+$told,}$1
  [ "$watching" ] || return
  note told "signal=$1"
  sleep 0.1
  if canary_lives; then kill -s "$1" "$script"; else breathe; fi
}
groups() { # SESSION: its process groups, as programs make some of their own: timeout, a shell with `set -m`
  (echo "${1-$$}"; ps -o pgid= --sid "${1-$$}") | sort -nu
}
for signal in $signals; do trap "hand_on $signal" "$signal"; done

# A prologue stands in `environment` and runs in the shell that becomes the script. Where one of its commands fails, as
# `set -e` counts it but not inside of functions (module, conda), the script is not run. The exit code is never 0 then.
import_functions() { # those that were exported to us, which -p has left alone
  local name text
  while IFS='=' read -r -d '' name text; do
    case $name in BASH_FUNC_*%%) name=${name#BASH_FUNC_} && eval "${name%??} $text" ;; esac
  done <"/proc/$$/environ"
}
be_spare() { # until it is said on descriptor 7 what is to be done before the script is begun
  echo "spare ${__here##*/} $$" >&8
  exec 8>&-
  TMOUT=0 IFS= read -r __line <&7 && TMOUT=0 IFS= LC_ALL=C read -r -d '' -N "$__line" __line <&7 || exit
  exec 7<&-
  eval "$__line" >/dev/null # with CDPATH cd prints
}
begin_prologue() {
  __prologue_begun=yes __prologue_failed=''
  trap 'code=$? __prologue_line=$LINENO
    mapfile -t -s $((__prologue_line - 1)) -n 1 __prologue_failed <"${BASH_SOURCE[0]}" # BASH_COMMAND is inside of a function
    exit $code' ERR
  trap 'code=$?
    echo "the prologue ended with exit code $code${__prologue_failed:+ at: $__prologue_failed}; the script was not run" >&2
    exit $((code ? code : 1))' EXIT
}

out_from=0 err_from=0 # what was in the output files before: they are appended to
[ ! -s "/proc/$$/fd/1" ] || out_from=$(stat -L -c %s "/proc/$$/fd/1")
[ ! -s "/proc/$$/fd/2" ] || err_from=$(stat -L -c %s "/proc/$$/fd/2")
out=$here/stdout err=$here/stderr
if [ "/proc/$$/fd/1" -ef "$out" ] && [ "/proc/$$/fd/2" -ef "$err" ]; then
  exec 6</dev/null # as mostly, and no process is needed to know it
else
  exec 6< <(readlink "/proc/$$/fd/1" || echo; readlink "/proc/$$/fd/2" || echo) # read when the script has been started
  out='' err=''
fi
exec 3<> <(:) # for what `jobs` says, as no process takes it in; not made by the keeper: the end of `:` would run its
# trap, and one that comes while that runs is lost
exec 4>&1 5<&0 3< <(
  exec 9<&3 3<&-
  trap '' $signals
  trap 'now; LC_ALL=C jobs -l >&9' CHLD # before there is a child: it may end at once
  (
    exec 9<&-
    trap - $signals
    SHLVL=$((SHLVL - 1))
    [ -z "$posix" ] || export "POSIXLY_CORRECT$posix"
    echo "$BASHPID" # before the prologue, which may take long and can be signalled too
    for __name in "${__kept[@]}"; do export "$__name"; done # from here on our names are not ours
    [ -z "$__spare" ] || be_spare
    now
    echo "$__now ${EXECUTE_TIME_LIMIT-}"
    unset EXECUTE_TIME_LIMIT
    if [ -s "$__here/environment" ]; then
      __prologue_begun=''
      . "$__here/environment" >&4 </dev/null 6<&-
      __code=$?
      [ -z "$__prologue_begun" ] || [ "$__code" = 0 ] || exit "$__code" # it ended by `return`, or cannot be parsed
      trap - ERR EXIT
    fi
    read -r __line <"$__here/script"
    __line=${__line#\#!}
    __line=${__line#"${__line%%[!$' \t']*}"} # without the blanks before it
    __line=${__line%%[$' \t']*}
    if [ ! -x "$__line" ]; then
      echo "$__line, which is to run the script, cannot be run on $HOSTNAME" >&2
      [ -z "$__line" ] || [ -e "$__line" ] || exit 127
    fi
    exec "$__here/script" "$@" <&5 >&4 4>&- 5<&- 6<&-
  ) &
  exec 4>&- 5<&- 6<&- 7<&- 8>&- </dev/null 2>/dev/null
  wait $!
  code=$? how=exit
  if ((code > 128 && code <= 192)); then # there are 64 signals
    how=signal
    echo end >&9
    while read -r line <&9 && [ "$line" != end ]; do
      [[ $line != *" $! Exit "* ]] || how=exit
    done
    [ $how = exit ] || code=$((code - 128))
  fi
  echo $how $code "$__now"
)
read -r script <&3
[ "$out" ] || { IFS= read -r out; IFS= read -r err; } <&6
exec 4>&- 5<&- 6<&- 7<&- </dev/null >/dev/null 2>&1
umask 077
breathe # after the script: schedulers signal the youngest first
[ -z "$told" ] || give_up_spare # the signal came before the script was known
read -r began limit <&3
if [[ $began != [0-9]* ]]; then # killed before the script was begun
  if [ "$__spare" ] && { [ ! -f "$here/script" ] || [ ! -s "$here/script" ]; }; then # or never needed
    [ ! "$here" -ef "/proc/$$/fd/9" ] || rm -rf -- "$here"
    exit
  fi
  read -r code over <<<"$limit"
  how=$began limit=''
  now
  began=$__now
fi
SECONDS=0
read -r _ _ _ _ _ session _ <"/proc/$$/stat"
note started "id=${SLURM_JOB_ID:-$session}" "node=${SLURMD_NODENAME:-$HOSTNAME}" "stdout=$out" "stderr=$err" \
  "stdout_from=$out_from" "stderr_from=$err_from"
early=$told watching=yes
if [ "$early" ]; then # those that came before: the script may have had them too, as the canary has then
  note told "signal=$early"
  sleep 0.1
  if canary_lives; then
    for signal in ${early//,/ }; do kill -s "$signal" "$script"; done
  else
    breathe
  fi
fi

[ "$how" ] || until
  [ -z "$limit" ] || patience=$((limit > SECONDS ? limit - SECONDS : 0)).1
  read -r ${limit:+-t "$patience"} how code over <&3
  [ $? -le 128 ]
do
  if [ -z "$limit" ] || ((SECONDS < limit)); then
    continue # a signal has been handed on
  elif [ -z "$expired" ]; then
    expired=yes limit=$((limit + 30))
    note limit
    for group in $(groups); do kill -s TERM -- "-$group"; done
  else
    kill -s KILL "$script"
    limit=''
  fi
done
if [ -z "$how" ]; then # the keeper was killed
  kill -s KILL "$script"
  how=signal code=9
fi
patience=20
until [ "$told" ] || canary_lives || ((patience-- == 0)); do sleep 0.1; done # what ended the script is on its way here
note ended "$how=$code" "told=$told"
if [ "$expired" ]; then # what is left of it, as no scheduler does that here, and only after it could tidy up too
  setsid /bin/bash -p -c "
    $(declare -f groups)"'
    for ((i = 0; i < 300; i++)); do # as long as the script itself may have
      sleep 0.1
      ps -o stat= --sid "$0" | grep -qv "^Z" || exit
    done
    for group in $(groups "$0"); do kill -s KILL -- "-$group"; done
  ' "$$" 8>&- &
fi
if [ "$how" = signal ]; then
  ulimit -c 0
  trap - $signals
  kill -s "$code" "$$"
  code=$((code + 128))
fi
exit "$code"
