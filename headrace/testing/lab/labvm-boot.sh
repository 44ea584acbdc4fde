# Runs in the lab VM after its root is in place; LABVM_MODULES, LABVM_CWD come from .env beside it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
. /lab/.env
ip link set lo up
hostname labvm
code=0
if [ -n "$LABVM_MODULES" ]; then modprobe -a $LABVM_MODULES >/lab/.out 2>&1 || code=125; fi
if [ $code = 0 ]; then
  (cd "$LABVM_CWD" && exec bash /lab/.script) </dev/null >>/lab/.out 2>&1
  code=$?
fi
echo $code >/lab/.rc
sync
# isa-debug-exit at 0xf4 ends QEMU at once; power-off takes another second.
printf '\0' | dd of=/dev/port bs=1 seek=244 count=1 2>/dev/null
