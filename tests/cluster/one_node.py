"""A whole Kubernetes on this machine, with one node that runs containers: what `make test-cluster` runs on.

    python -m tests.cluster.one_node up|down|why-not

`up` starts it and prints its kubeconfig, `down` ends it; `why-not` says why this machine cannot have one, or
nothing. Everything lies in `FOLDER`: programs' logs and pids, certificates, images, volumes. It has a network
namespace of its own, so that the machine's addresses, routes and firewall stay as they are. Images are kept by
`down`, all else is made anew by `up`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import psutil

from tests.cluster import control_plane

FOLDER = Path(platformdirs.user_cache_dir("foldwise")) / "cluster"
NODE = "node1"
NAMESPACE = "foldwise"
"""Of the network."""

HOST, ADDRESS = "10.77.0.1", "10.77.0.2"
"""The two ends of the wire between this machine and the cluster."""

URL = f"https://{ADDRESS}:6443"
SERVICES, PODS = "10.96.0.0/16", "10.244.0.0/24"
DISKS = 48
CONTAINERD = FOLDER / "containerd.sock"
CGROUP = Path("/sys/fs/cgroup")
DEBIAN = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
}
"""Programs, and the packages that have them."""

SANDBOX = "cluster.local/sandbox:1"
"""The image of the container that holds a pod's network."""


def why_not() -> str | None:
    """Why this machine cannot have one, or None."""
    if os.geteuid() != 0:
        return "needs root: containers, mounts and a network namespace"
    if missing := sorted(package for program, package in DEBIAN.items() if shutil.which(program) is None):
        return f"needs Debian's {', '.join(missing)}"
    if not Path("/usr/lib/cni/bridge").exists():
        return "needs Debian's containernetworking-plugins"
    folder = control_plane.folder_of_programs()
    if folder is None or not all((folder / name).exists() for name in ("kubelet", "kube-proxy", "coredns")):
        return "no Kubernetes; tests/cluster/build-kubernetes builds one with Go"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        return "this machine allows no network namespaces"
    return None


def up() -> Path:
    """Start it; the kubeconfig of its administrator."""
    down()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for part in ("etcd", "kubelet", "disks", "cni", "logs", "pids"):
        shutil.rmtree(FOLDER / part, ignore_errors=True)
        (FOLDER / part).mkdir()
    programs = control_plane.folder_of_programs()
    assert programs is not None
    _make_network()
    control_plane.make_certificates(FOLDER, node=NODE, address=ADDRESS)
    kubeconfig = control_plane.write_kubeconfig(FOLDER, "admin", URL)
    control_plane.write_kubeconfig(FOLDER, "kubelet", URL)
    _start_containers()
    load = Path(__file__).parent / "load-images"
    subprocess.run([load, CONTAINERD, FOLDER / "images", programs], check=True, stdout=2)
    _start_control_plane(programs)
    _start_node(programs)
    with control_plane.open_admin(FOLDER, URL) as admin:
        plane = control_plane.ControlPlane(url=URL, folder=FOLDER, admin=admin)
        control_plane.wait_until(lambda: _is_ready(plane), 120)
        _make_disks(plane)
    return kubeconfig


def down() -> None:
    """End it, by the pids that were written down and what runs in its containers."""
    for name in ("kubelet", "kube-proxy", "coredns", "kube-scheduler", "kube-controller-manager"):
        _end(name)
    for process in _in_containers():
        process.kill()
    for name in ("kube-apiserver", "etcd", "containerd"):
        _end(name)
    _forget_mounts()
    for group in sorted(CGROUP.glob("*/kubepods/**/"), key=lambda path: len(path.parts), reverse=True):
        group.rmdir()
    # A namespace goes when the last that was in it has gone; its wire must not outlive it.
    if Path("/sys/class/net/fw-host").exists():
        subprocess.run(["ip", "link", "delete", "fw-host"], check=True)
    if (Path("/run/netns") / NAMESPACE).exists():
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


def run_inside(*command: str, log: str) -> None:
    """Start a program in the cluster's network; its log and pid are files."""
    with (FOLDER / "logs" / f"{log}.log").open("w") as output:
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{NAMESPACE}", "--", *command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=FOLDER,
            start_new_session=True,
        )
    (FOLDER / "pids" / log).write_text(str(process.pid))


def _make_network() -> None:
    def ip(*arguments: str, inside: bool = False) -> None:
        subprocess.run(["ip", *(("-n", NAMESPACE) if inside else ()), *arguments], check=True)

    ip("netns", "add", NAMESPACE)
    ip("link", "add", "fw-host", "type", "veth", "peer", "name", "fw-node", "netns", NAMESPACE)
    ip("address", "add", f"{HOST}/30", "dev", "fw-host")
    ip("link", "set", "fw-host", "up")
    ip("address", "add", f"{ADDRESS}/30", "dev", "fw-node", inside=True)
    ip("link", "set", "fw-node", "up", inside=True)
    ip("link", "set", "lo", "up", inside=True)
    # Addresses of services need a route before the firewall's rules lead them elsewhere.
    ip("route", "add", "default", "via", HOST, inside=True)
    for key in ("ip_forward", "conf.all.route_localnet"):
        setting = f"net.ipv4.{key}=1"
        subprocess.run(["ip", "netns", "exec", NAMESPACE, "sysctl", "-qw", setting], check=True)


def _start_containers() -> None:
    (FOLDER / "cni" / "10-pod.conflist").write_text(
        json.dumps(
            {
                "cniVersion": "0.4.0",
                "name": "pod",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": "cni0",
                        "isGateway": True,
                        "ipMasq": True,
                        "hairpinMode": True,
                        "ipam": {
                            "type": "host-local",
                            "dataDir": str(FOLDER / "cni" / "addresses"),
                            "ranges": [[{"subnet": PODS}]],
                            "routes": [{"dst": "0.0.0.0/0"}],
                        },
                    },
                    {"type": "portmap", "capabilities": {"portMappings": True}},
                ],
            }
        )
    )
    (FOLDER / "containerd.toml").write_text(
        f"""version = 2
root = "{FOLDER}/containerd"
state = "{FOLDER}/containerd-run"
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{SANDBOX}"
  # A container here may not make itself less likely to be killed for want of memory.
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{FOLDER}/cni"
"""
    )
    run_inside("containerd", f"--config={FOLDER / 'containerd.toml'}", log="containerd")
    control_plane.wait_until(lambda: _ctr("version").returncode == 0, 60)
    for kind in ("tasks", "containers"):
        # Of a cluster that was here before.
        for old in _ctr(kind, "list", "--quiet").stdout.split():
            _ctr(kind, "delete", *(("--force",) if kind == "tasks" else ()), old)


def _start_control_plane(programs: Path) -> None:
    etcd = "http://127.0.0.1:2379"
    run_inside(
        "etcd",
        f"--data-dir={FOLDER / 'etcd'}",
        f"--listen-client-urls={etcd}",
        f"--advertise-client-urls={etcd}",
        # It is made anew at every start.
        "--unsafe-no-fsync",
        log="etcd",
    )
    keys = FOLDER / "server.key"
    run_inside(
        str(programs / "kube-apiserver"),
        f"--etcd-servers={etcd}",
        "--secure-port=6443",
        f"--advertise-address={ADDRESS}",
        f"--service-cluster-ip-range={SERVICES}",
        f"--client-ca-file={FOLDER / 'ca.crt'}",
        f"--tls-cert-file={FOLDER / 'server.crt'}",
        f"--tls-private-key-file={keys}",
        f"--service-account-key-file={keys}",
        f"--service-account-signing-key-file={keys}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--kubelet-client-certificate={FOLDER / 'admin.crt'}",
        f"--kubelet-client-key={FOLDER / 'admin.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        log="kube-apiserver",
    )
    control_plane.wait_for_api_server(FOLDER, URL)
    common = [f"--kubeconfig={FOLDER / 'admin.conf'}", "--leader-elect=false", "--bind-address=127.0.0.1"]
    run_inside(
        str(programs / "kube-controller-manager"),
        *common,
        f"--service-account-private-key-file={keys}",
        f"--root-ca-file={FOLDER / 'ca.crt'}",
        "--use-service-account-credentials",
        log="kube-controller-manager",
    )
    run_inside(str(programs / "kube-scheduler"), *common, log="kube-scheduler")


def _start_node(programs: Path) -> None:
    (FOLDER / "kubelet.yaml").write_text(
        f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{CONTAINERD}
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
clusterDNS: ["{ADDRESS}"]
clusterDomain: cluster.local
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {FOLDER}/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: {FOLDER}/kubelet.crt
tlsPrivateKeyFile: {FOLDER}/kubelet.key
volumePluginDir: {FOLDER}/kubelet/plugins-of-volumes
evictionHard: {{memory.available: 200Mi, nodefs.available: 1%, imagefs.available: 1%}}
# An image that was collected could not be pulled again.
imageGCHighThresholdPercent: 100
"""
    )
    run_inside(
        str(programs / "kubelet"),
        f"--config={FOLDER / 'kubelet.yaml'}",
        f"--kubeconfig={FOLDER / 'kubelet.conf'}",
        f"--hostname-override={NODE}",
        f"--node-ip={ADDRESS}",
        f"--root-dir={FOLDER / 'kubelet'}",
        log="kubelet",
    )
    run_inside(
        str(programs / "kube-proxy"),
        f"--kubeconfig={FOLDER / 'admin.conf'}",
        f"--hostname-override={NODE}",
        f"--cluster-cidr={PODS}",
        "--proxy-mode=iptables",
        "--conntrack-max-per-core=0",
        log="kube-proxy",
    )
    (FOLDER / "Corefile").write_text(
        f""".:53 {{
  bind {ADDRESS}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {FOLDER}/admin.conf
  }}
}}
"""
    )
    run_inside(str(programs / "coredns"), "-conf", str(FOLDER / "Corefile"), log="coredns")


def _make_disks(plane: control_plane.ControlPlane) -> None:
    """Volumes for claims, all on the one node, so that many pods can mount each."""
    storage = "/apis/storage.k8s.io/v1/storageclasses"
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    kind = {"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}
    plane.must("POST", storage, {"metadata": {"name": "disks", "annotations": default}, **kind})
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    for number in range(DISKS):
        disk = FOLDER / "disks" / f"{number:02}"
        disk.mkdir()
        spec = {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "storageClassName": "disks",
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(disk)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
        }
        volume = {"metadata": {"name": f"disk-{number:02}"}, "spec": spec}
        plane.must("POST", "/api/v1/persistentvolumes", volume)


def _is_ready(plane: control_plane.ControlPlane) -> bool:
    answer = plane.admin.get(f"/api/v1/nodes/{NODE}")
    conditions = answer.json()["status"].get("conditions", []) if answer.is_success else []
    return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)


def _ctr(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ctr", f"--address={CONTAINERD}", "--namespace=k8s.io", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _end(name: str) -> None:
    file = FOLDER / "pids" / name
    if not file.exists():
        return
    pid = int(file.read_text())
    file.unlink()
    try:
        process = psutil.Process(pid)
        if process.name()[:15] != name[:15]:
            # The machine was started again since, and the number is another's.
            return
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(20)


def _in_containers() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if str(CONTAINERD) in process.cmdline() and process.name().startswith("containerd-shim"):
                yield from process.children(recursive=True)
                yield process
        except psutil.NoSuchProcess:
            continue


def _forget_mounts() -> None:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in reversed(mounted):
        if path.startswith(str(FOLDER)):
            subprocess.run(["umount", "--lazy", path], check=False)


def main() -> int:
    match sys.argv[1:]:
        case ["up"]:
            print(up())
        case ["down"]:
            down()
        case ["why-not"]:
            print(why_not() or "", end="")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
