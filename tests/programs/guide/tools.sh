# Sets up a host of the guide in its own mount and PID namespaces: the guide's commands write to
# memory, and a few tools are replaced. $KATRAN is the program. A shell reads this before it runs
# the guide's commands.
mount -t tmpfs none /run
mkdir -p /run/etc /run/local/sbin /run/local/share /run/root/new /run/tools /run/units
cp -a /etc/. /run/etc
mount --bind /run/etc /etc
mount --bind /run/local /usr/local
mount --bind /run/root /root
# This network namespace's: the machine's interrupts are left alone.
mount -t sysfs none /sys
mount -t bpf none /sys/fs/bpf
printf '#!/bin/sh\nexec %s "$@"\n' "$KATRAN" >/usr/local/sbin/katran
chmod 755 /usr/local/sbin/katran
cp -p /usr/local/sbin/katran /root/new/katran

# Packages count as installed.
printf '#!/bin/sh\nexit 0\n' >/run/tools/apt

# Units are read from /etc/systemd/system; a service is ready when it reports that.
cat >/run/tools/systemctl <<'END'
#!/bin/sh
unit=/etc/systemd/system
has_ended() { [ ! -e /proc/$1 ] || grep -q ') Z ' /proc/$1/stat; }
start() {
    command=$(sed -n 's/^ExecStart=//p' $unit/$1.service)
    if grep -q '^Type=oneshot' $unit/$1.service; then
        $command >>/run/units/$1.log 2>&1
    else
        setsid $command >>/run/units/$1.log 2>&1 </dev/null &
        echo $! >/run/units/$1.pid
        ready $1
    fi
}
ready() {
    for _ in $(seq 600); do
        sed -n "$(($(cat /run/units/$1.before 2>/dev/null || echo 0) + 1)),\$p" /run/units/$1.log |
            grep -q 'commands at\|stripping tunnels' && break
        has_ended $(cat /run/units/$1.pid) && { cat /run/units/$1.log >&2; exit 1; }
        sleep 0.1
    done
    wc -l </run/units/$1.log >/run/units/$1.before
}
stop() {
    [ -e /run/units/$1.pid ] || return 0
    pid=$(cat /run/units/$1.pid)
    kill $pid 2>/dev/null
    while ! has_ended $pid; do sleep 0.05; done
    rm /run/units/$1.pid
    wc -l </run/units/$1.log >/run/units/$1.before
}
verb=$1; shift
[ "$1" = --now ] && shift
for name; do
    case $verb in
    enable | start) start $name ;;
    disable | stop) stop $name ;;
    restart) stop $name; start $name ;;
    reload) kill -HUP $(cat /run/units/$name.pid) ;;
    ready) ready $name ;;
    status) ps -o args= -p $(cat /run/units/$name.pid) ;;
    *) echo "systemctl $verb is not played" >&2; exit 1 ;;
    esac
done
END

cat >/run/tools/systemd-run <<'END'
#!/bin/sh
while case $1 in --unit=*) name=${1#--unit=} ;; --*) ;; *) false ;; esac; do shift; done
setsid "$@" >>/run/units/$name.log 2>&1 </dev/null &
echo $! >/run/units/$name.pid
exec systemctl ready $name
END

printf '#!/bin/sh\ncat /run/units/$2.log\n' >/run/tools/journalctl
chmod 755 /run/tools/*
export PATH=/run/tools:/usr/local/sbin:$PATH
