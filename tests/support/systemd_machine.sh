#!/bin/bash
# systemd as PID 1 of a machine of its own: a root of temporary file systems, with programs bound read-only into it.
# Nothing of the real machine can be written to from in there. Started by tests/service/test_real_systemd.py with
#   unshare --mount --pid --fork --kill-child --cgroup --ipc --uts --net bash systemd_machine.sh
# and these variables: LV_ROOT (an empty folder), LV_CHECKOUT, LV_PYTHON (the interpreter's prefix), LV_PACKAGES,
# LV_TRIAL (the script to run in there). What the trial prints stands in /run/out of that root.
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$LV_ROOT"
cd "$LV_ROOT"
mkdir -p usr etc/systemd/system dev proc sys run tmp root home old var/lib var/log opt/python opt/checkout opt/packages
for link in bin sbin lib lib64; do
  if [ -L "/$link" ]; then ln -s "usr/$link" "$link"; fi
done
bind() { mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }
bind /usr usr
bind "$LV_PYTHON" opt/python
bind "$LV_CHECKOUT" opt/checkout
bind "$LV_PACKAGES" opt/packages
cp "$LV_TRIAL" trial.sh
# Accounts and the linker's cache; no unit, no machine's own settings.
for file in passwd group shadow nsswitch.conf ld.so.cache ld.so.conf os-release; do
  if [ -e "/etc/$file" ]; then cp -L "/etc/$file" "etc/$file"; fi
done
touch etc/fstab etc/machine-id
for unit in systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udev-trigger.service \
  systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service systemd-tmpfiles-clean.timer systemd-sysctl.service \
  systemd-random-seed.service systemd-modules-load.service systemd-update-utmp.service systemd-sysusers.service \
  systemd-remount-fs.service systemd-machine-id-commit.service systemd-logind.service dbus.service dbus.socket \
  dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
  sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount getty.target; do
  ln -s /dev/null "etc/systemd/system/$unit"
done
cat > etc/systemd/system/trial.service <<'END'
[Service]
Type=oneshot
ExecStart=/bin/bash /trial.sh
StandardOutput=file:/run/out
StandardError=file:/run/errors
Environment=HOME=/root
END
printf '[Unit]\nRequires=basic.target trial.service\nAfter=basic.target\n' > etc/systemd/system/trial.target
mount -t tmpfs tmpfs dev
for node in null zero full random urandom; do touch "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
touch dev/console
mount --bind /dev/null dev/console
mkdir dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
bind proc/sys proc/sys
mount -t tmpfs tmpfs sys
mkdir -p sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in run tmp; do mount -t tmpfs tmpfs "$folder"; done
chmod 1777 tmp
pivot_root . old
umount -l /old
cd /
ip link set lo up 2>/dev/null || true
export container=llmvisor-trial
exec /usr/lib/systemd/systemd --system --unit=trial.target --log-target=console --show-status=0
