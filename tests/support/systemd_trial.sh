# What test_real_systemd.py has done inside: every line that begins with `=` is an answer, `=name value`.
/opt/python/bin/python3 -m venv --without-pip /opt/llmvisor
packages=$(echo /opt/llmvisor/lib/python3*/site-packages)
printf '%s\n' /opt/checkout/daemon /opt/checkout/runtimes /opt/checkout/ctl /opt/packages > "$packages/checkout.pth"
export PYTHONDONTWRITEBYTECODE=1
# Of an interpreter with a shared library that was built for another place.
mkdir -p /run/systemd/system/llmvisor.service.d /etc/llmvisor
printf '[Service]\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib\n' > /run/systemd/system/llmvisor.service.d/library.conf
export LD_LIBRARY_PATH=/opt/python/lib
cat > /etc/llmvisor/config.yaml <<'END'
server: {shutdown_timeout: 6}
models:
  mock: {backend: mock, options: {token_delay_ms: 10, reply_tokens: 8}}
END
answer() { echo "=$1 $(echo "$2" | tr '\n' ' ')"; }
ctl() { /opt/llmvisor/bin/python -P -m llmctl "$@"; }
ask() {
  curl -s -o /dev/null -m 60 -w '%{http_code}' "http://127.0.0.1:${1:-8000}/v1/completions" -H 'Content-Type: application/json' \
    -d '{"model": "mock", "prompt": "hello", "max_tokens": 4}'
}
shown() { systemctl show --value --property "$1" llmvisor.service; }
until_active_is() { for _ in $(seq 150); do [ "$(shown ActiveState)" = "$1" ] && break; sleep 0.2; done; }

answer version "$(systemctl --version | head -n 1)"
ctl service install > /dev/null; answer install $?
answer installed "$(shown ActiveState)"
answer first_client "$(ask)"
answer activated "$(shown ActiveState) $(shown DynamicUser) $(shown Type) $(shown Result)"
answer port_file "$(cat /var/lib/llmvisor/.port)"
answer status "$(ctl status --json | /opt/llmvisor/bin/python -c 'import json, sys; s = json.load(sys.stdin); print(s["pid"], s["socket"])')"
answer main_pid "$(shown MainPID)"
for _ in $(seq 40); do case "$(shown StatusText)" in *mock*) break ;; esac; sleep 0.2; done
answer status_text "$(shown StatusText)"
until_active_is inactive
answer idle "$(shown ActiveState) $(shown Result) $(shown ExecMainStatus)"
answer second_client "$(ask)"
pid=$(shown MainPID); worker=$(pgrep -f 'llmvisor_runtimes mock')
ctl restart-daemon > /run/upgrade 2>&1; code=$?
[ "$worker" = "$(pgrep -f 'llmvisor_runtimes mock')" ] && [ "$pid" = "$(shown MainPID)" ] && same=same || same=other
answer upgrade "$code $same $(ask) $(cat /run/upgrade)"
systemctl reload llmvisor.service; answer reload "$? $(shown ActiveState)"
systemctl kill --kill-whom=all --signal=KILL llmvisor.service; sleep 0.5
answer after_kill "$(ask) $(shown NRestarts)"
(for _ in $(seq 10); do ask; echo; done) > /run/answers &
sleep 0.3; systemctl restart llmvisor.service; wait
answer during_restart "$(sort /run/answers | uniq -c | tr -s ' ')"
printf '[Service]\nWatchdogSec=3\n' > /run/systemd/system/llmvisor.service.d/watchdog.conf
systemctl daemon-reload; systemctl restart llmvisor.service; sleep 3.5
answer fed "$(shown NRestarts) $(shown ActiveState)"
ctl restart-daemon > /dev/null 2>&1; sleep 3.5
answer fed_after_upgrade "$(shown NRestarts) $(shown ActiveState)"
kill -STOP "$(shown MainPID)"
for _ in $(seq 100); do [ "$(shown NRestarts)" != 0 ] && break; sleep 0.2; done
answer starved "$(shown NRestarts)"
rm /run/systemd/system/llmvisor.service.d/watchdog.conf; systemctl daemon-reload
answer after_watchdog "$(ask)"
sed -i 's/timeout: 6/timeout: 6, port: 8001/' /etc/llmvisor/config.yaml
ctl service install > /dev/null; answer moved "$? $(ask 8001) $(ask)"
sed -i 's/, port: 8001//' /etc/llmvisor/config.yaml; ctl service install > /dev/null
ctl service stop > /dev/null; answer stop "$? $(shown ActiveState) $(ask)"
ctl service start > /dev/null; answer start "$? $(shown ActiveState) $(ask)"
systemctl stop llmvisor.service
echo 'server: {prot: 1}' > /etc/llmvisor/config.yaml
ask > /dev/null; sleep 1
answer wrong_configuration "$(shown ExecMainStatus) $(shown NRestarts)"
ctl service uninstall > /dev/null; answer uninstall "$? $(ls /etc/systemd/system | grep -c llmvisor)"
echo =over
