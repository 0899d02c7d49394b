# Runs where the jobs' files lie, and says what is new there as it comes: names in directories of marks, with the
# records of their jobs, and what growing files have got. Spoken to by lines on stdin:
#
#   marks ID CUTOFF FOLDER      watch a directory; names that sort before CUTOFF are swept out
#   follow ID OFFSET MOST FILE  watch a file from OFFSET on, and say no more than up to MOST
#   more ID MOST                that much may be said now
#   forget ID                   of a directory or file
#   (an empty line)             look often: something is about to happen
#
# It answers with `old ID NAME` for what was there at first, `mark ID NAME` and a record, `data ID` and bytes, `again ID`
# for a file that begins anew, `alive`. What is not one line ends with a line that holds $marker alone.
# Hardly anything is forked as long as nothing happens: reading one byte tells whether there is more, -ef whether it is
# the file, and a stat each two seconds whether it has become shorter.
LC_ALL=C
shopt -s nullglob dotglob
declare -A folders seen files offsets most descriptors
part='' quiet=0 looks=0 tick=.02 seconds=$SECONDS stat_at=$SECONDS

obey() { # LINE
  local verb id a b rest
  quiet=0
  IFS=' ' read -r verb id rest <<<"$1"
  case $verb in
    marks)
      a=${rest%% *} folders[$id]=${rest#* }
      sweep "$a" "${folders[$id]}"
      for b in "${folders[$id]}"/*; do
        b=${b##*/}
        seen[$id/$b]=1
        echo "old $id $b"
      done
      ;;
    follow)
      offsets[$id]=${rest%% *} rest=${rest#* } most[$id]=${rest%% *} files[$id]=${rest#* }
      begin "$id"
      ;;
    more) [ -z "${files[$id]+there}" ] || most[$id]=$rest ;;
    forget)
      close "$id"
      unset "files[$id]" "folders[$id]" "offsets[$id]" "most[$id]"
      ;;
  esac
}

sweep() { # CUTOFF FOLDER
  local name old=()
  for name in "$2"/*; do
    [[ ${name##*/} > $1 ]] || old+=("$name")
  done
  [ ${#old[@]} = 0 ] || printf '%s\0' "${old[@]}" | xargs -0 rm -f --
}

begin() { # ID: open its file where it is to be read from
  local fd at
  [ -f "${files[$1]}" ] || return # a pipe would stop all of us
  { exec {fd}<"${files[$1]}"; } 2>/dev/null || return
  descriptors[$1]=$fd
  [ "${offsets[$1]}" = 0 ] && return
  dd bs=1 "skip=${offsets[$1]}" count=0 <&"$fd" 2>/dev/null
  read -r _ at <"/proc/$$/fdinfo/$fd"
  [ "$at" = "${offsets[$1]}" ] || close "$1"
}

close() { # ID
  local fd=${descriptors[$1]-}
  [ -z "$fd" ] || exec {fd}<&-
  unset "descriptors[$1]"
}

again() { # ID: it is another file, or a shorter one; who reads it says how much of that may be said
  close "$1"
  offsets[$1]=0 most[$1]=0
  echo "again $1"
}

pump() { # ID: say what has come
  local id=$1 fd=${descriptors[$1]-} byte at room
  if [ -z "$fd" ]; then
    begin "$id"
    fd=${descriptors[$id]-}
    [ "$fd" ] || return
  elif [ -f "${files[$id]}" ] && { : <"${files[$id]}"; } 2>/dev/null && ! [ "${files[$id]}" -ef "/dev/fd/$fd" ]; then # opening makes NFS look
    again "$id"
    return
  fi
  while read -r _ at <"/proc/$$/fdinfo/$fd" && room=$((most[$id] - at)) && [ $room -gt 0 ]; do
    IFS= read -r -d '' -n 1 -u "$fd" byte || return
    quiet=0
    echo "data $id"
    if [ "$byte" ]; then printf %s "$byte"; else printf '\0'; fi
    dd bs=64k count=$((room > chunk ? chunk - 1 : room - 1)) iflag=count_bytes <&"$fd" 2>/dev/null
    printf '\n%s\n' "$marker"
  done
}

shrunk() { # whether a file that is quiet has become shorter than what was read of it
  local id size at
  for id in "${!descriptors[@]}"; do
    read -r _ at <"/proc/$$/fdinfo/${descriptors[$id]}"
    [ "$at" -gt 0 ] || continue
    size=$(stat -L -c %s -- "${files[$id]}" 2>/dev/null) || continue
    [ "$size" -ge "$at" ] || again "$id"
  done
}

look() {
  local id name path record
  local -A fresh=()
  looks=$((looks + 1))
  for id in "${!folders[@]}"; do
    # Listing a full directory costs: not where it was not changed since it was read. The clock for that ticks each 1 to
    # 10 ms, so it is listed some milliseconds after something happened too, and now and then to be sure.
    [ $quiet = 2 ] || [ $quiet = 5 ] || [ -N "${folders[$id]}" ] || [ $((looks % 20)) = 0 ] || continue
    for path in "${folders[$id]}"/*; do
      [ "${seen[$id/${path##*/}]-}" ] || fresh[$id/${path##*/}]=$id
    done
  done
  for id in "${!files[@]}"; do pump "$id"; done # first, so that who hears of the end has all that came before it
  for name in "${!fresh[@]}"; do
    quiet=0 id=${fresh[$name]} seen[$name]=1 record=''
    name=${name#*/}
    { IFS= read -r -d '' record <"${folders[$id]%/events}/jobs/${name%%.*}/record"; } 2>/dev/null
    printf 'mark %s %s\n%s\n%s\n' "$id" "$name" "$record" "$marker"
  done
}

while
  IFS= read -r -t "$tick" line
  code=$?
  [ $code = 0 ] || [ $code -gt 128 ] # else the connection is gone
do
  part+=$line
  if [ $code = 0 ]; then
    obey "$part"
    part='' tick=.001 # there may be more of them
    continue
  fi
  look
  quiet=$((quiet + 1))
  if [ $quiet -lt 100 ]; then
    tick=.002
  elif [ $quiet -lt 200 ]; then
    tick=.005
  elif [ $quiet -lt 1000 ]; then
    tick=.02
  elif [ $quiet -lt 2000 ]; then
    tick=.05
  elif [ ${#files[@]} -gt 0 ]; then
    tick=.25
  else
    tick=1
  fi
  if [ $((SECONDS - stat_at)) -ge 2 ]; then
    stat_at=$SECONDS
    shrunk
  fi
  if [ $((SECONDS - seconds)) -ge 5 ]; then
    seconds=$SECONDS
    echo alive
  fi
done
