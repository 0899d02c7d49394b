# Keeps one job ready to be begun, so that a trivial one need not wait for a directory and for a wrapper to start: a
# spare, which waits in a directory of its own. $__root holds the directories, $__run is the text of run.bash. Says
# `spare NAME PID` when one is ready (run.bash says it), and makes the next one when that has been used.
# Spoken to by lines on stdin:
#
#   go NAME PID SCRIPT ENVIRONMENT WORDS DIRECTORY   lengths, and then that many bytes of each
#   renew                                            the spare is lost to whom it was promised: make another one
#
# `go` is answered by `went`, or by `gone`: then that directory and its spare are not there any more.
# A spare that is not asked for is given up after some minutes, `lost`, and when the connection is gone. `alive` is said
# each five seconds: when this was killed, a job that it has begun still holds the connection's end.
# The environment is the jobs' too: hence the names.
exec 8<&- 9<&-
SHLVL=$((SHLVL + 1)) # as where a shell starts a job
trap : PIPE # a spare may have been killed
__mask=$(umask)
__name='' __go='' __due=''

prepare() {
  __due=''
  TZ=UTC0 printf -v __name '%(%Y%m%dT%H%M%S)T' -1
  printf -v __name '%s-%04x%04x' "$__name" "$RANDOM" "$RANDOM"
  umask 077
  fill "$__root/jobs/$__name" || __name=''
  umask "$__mask"
  [ "$__name" ] || return
  exec {__go}> >(
    trap - INT QUIT PIPE # what is ignored at its start a script cannot get back
    exec 7<&0 8>&1 </dev/null >"$__root/jobs/$__name/stdout" 2>"$__root/jobs/$__name/stderr"
    cd && EXECUTE_SPARE=$__root/jobs/$__name exec setsid -- /bin/bash -p "$__root/jobs/$__name/./run"
  )
}

fill() { # DIRECTORY
  [ -d "$__root/jobs" ] && [ -d "$__root/events" ] || mkdir -p -- "$__root/jobs" "$__root/events" || return
  mkdir -- "$1" || return # what is there already is another's
  printf %s "$__run" >"$1/run" && : >"$1/script" && chmod 700 "$1/script" && : >"$1/record" && : >"$1/stdout" &&
    : >"$1/stderr" || { rm -rf -- "$1"; return 1; }
}

begin() { # NAME PID LENGTHS: whether the spare of that name could be told to begin
  local LC_ALL=C script='' environment='' words='' directory=''
  take script "$3"
  take environment "$4"
  take words "$5"
  take directory "$6"
  [ "$1" = "$__name" ] && kill -0 "$2" || return
  [ "$directory" = . ] || { cd && cd -- "$directory" && cd; } >/dev/null || return
  [ -x "$__root/jobs/$1/script" ] && [ -f "$__root/jobs/$1/stdout" ] && [ -f "$__root/jobs/$1/stderr" ] || return
  printf %s "$script" >"$__root/jobs/$1/script" || return
  if [ "$environment" ]; then
    umask 077
    printf %s "$environment" >"$__root/jobs/$1/environment" || return
  fi
  printf '%s\n%s' "${#words}" "$words" >&"$__go"
}

take() { # VARIABLE LENGTH: so many bytes of the input
  [ "$2" = 0 ] || TMOUT=0 IFS= read -r -d '' -N "$2" "$1" || exit
}

give_up() { # NAME: what waits there sees the end of its input, and removes its directory
  local directory=$__root/jobs/$1 looks
  [[ $1 =~ ^[0-9]{8}T[0-9]{6}-[0-9a-f]{8}$ ]] || return
  [ ! -s "$directory/script" ] || : >"$directory/script" # without which it is no job
  [ -z "$__go" ] || exec {__go}>&-
  __name='' __go=''
  for ((looks = 0; looks < 100; looks++)); do
    [ -e "$directory" ] || return
    sleep 0.01
  done
  rm -rf -- "$directory"
}

prepare
__wait=5 # seconds, after which it says `alive`; and bash lets go of children that have ended only then
__patience=60 __waits=0 __part=''
while
  IFS= read -r -t "${__due:-$__wait}" __line
  __code=$?
  [ $__code = 0 ] || [ $__code -gt 128 ] # else the connection is gone
do
  __part+=$__line __verb=''
  if [ $__code = 0 ]; then
    __verb=${__part%% *} __part=${__part#* }
    __wanted=${__part%% *} __lengths=${__part#* } __part='' __waits=0
  fi
  case $__code$__verb in
    0go)
      if begin "$__wanted" $__lengths; then
        exec {__go}>&-
        __name='' __go=''
        echo went
      else
        give_up "$__wanted"
        echo gone
      fi
      umask "$__mask"
      __due=.03 # not at once after another: the beginning of a job comes first
      ;;
    0renew)
      [ -z "$__name" ] || give_up "$__name"
      prepare
      ;;
    1*) # nothing came
      if [ "$__due" ]; then
        prepare
      else
        echo alive
        if [ "$__name" ] && ((++__waits >= __patience)); then
          give_up "$__name"
          echo lost
        fi
      fi
      ;;
  esac
done
