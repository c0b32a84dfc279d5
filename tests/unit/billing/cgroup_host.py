"""A machine's /proc and cgroup file systems below one directory, of v1, v2 and both."""

from dataclasses import dataclass
from pathlib import Path

from byoc_agents.billing.sources.cgroup import CgroupSource, at_path, of_process
from byoc_agents.billing.sources.cgroup_paths import Locator
from byoc_agents.billing.sources.procfs import Finder, ProcFs
from byoc_agents.billing.sources.reading import Reading

BOOT_ID = "8cf25f06-7a2e-4b5b-aef5-5834d36300d2"
ID = "0123456789abcdef" * 4
OTHER_ID = "fedcba9876543210" * 4
PID, AGENT = 41, 7
HUGE = "9223372036854771712"


@dataclass
class Host:
    """A machine's /proc and cgroup file systems below one directory."""

    root: Path

    @property
    def proc(self) -> ProcFs:
        return ProcFs(self.root / "proc")

    def file(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def process(self, pid: int | str, cgroup: str, mounts: list[str], start: int = 500) -> None:
        self.file(f"proc/{pid}/cgroup", cgroup)
        self.file(f"proc/{pid}/mountinfo", "".join(f"{line}\n" for line in mounts))
        stat = f"{pid} (a ) S b) S 1 " + "0 " * 17 + f"{start} 0 0\n"
        self.file(f"proc/{pid}/stat", stat)
        self.file(f"proc/{pid}/status", "Name:\tx\nUid:\t1\t101\t1\t1\nGid:\t1\t102\t1\t1\n")
        self.file(f"proc/{pid}/statm", "900 300 1 1 0 1 0\n")

    def v2(self, path: str, pids: str = f"{PID}\n", *, memory: bool = True) -> Path:
        files = {
            "cgroup.controllers": "cpu memory\n",
            "cgroup.events": "populated 1\n",
            "cgroup.procs": pids,
            "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
        }
        if memory:
            files |= {"memory.current": "4096\n", "memory.max": "8589934592\n"}
            files |= {"cpu.max": "150000 100000\n"}
        for name, text in files.items():
            self.file(f"{path}/{name}", text)
        return self.root / path

    def v2_root(self, path: str) -> None:
        self.v2(path, memory=False)
        (self.root / path / "cgroup.events").unlink()

    def v1(self, mount: str, path: str, files: dict[str, str]) -> Path:
        self.file(f"{mount}/cgroup.sane_behavior", "0\n")
        for name, text in {"cgroup.procs": f"{PID}\n", **files}.items():
            self.file(f"{mount}/{path}/{name}", text)
        return self.root / mount / path

    def mount(self, root: str, point: str, kind: str = "cgroup2", names: str = "") -> str:
        inside = point if point.startswith("/") else str(self.root / point)
        return f"30 23 0:29 {root} {inside} rw,relatime shared:9 - {kind} {kind} rw,{names}"

    def of_process(self, pid: int = PID) -> CgroupSource:
        finder = Finder(self.proc, pid)
        return CgroupSource(of_process(Locator(self.proc), finder, self.proc), self.proc, BOOT_ID)

    def at_path(self, path: Path) -> CgroupSource:
        return CgroupSource(at_path(Locator(self.proc), path), self.proc, BOOT_ID)


def a_pod(host: Host) -> Host:
    """Make a pod of two containers, the daemon's and the target's, that share processes only.

    Each has its own cgroup as the root of its own mount; the kernel shows a sibling as `/../x`.
    """
    host.v2("sys", f"{AGENT}\n")
    host.process("self", "0::/\n", [host.mount("/", "sys")])
    host.v2(f"proc/{PID}/root/sys/fs/cgroup")
    path = f"/../cri-containerd-{ID}.scope"
    host.process(PID, f"0::{path}\n", [host.mount(path, "/sys/fs/cgroup")])
    return host


CPU_V1 = {
    "cpuacct.usage": "1500000999\n",
    "cpu.cfs_quota_us": "-1\n",
    "cpu.cfs_period_us": "100000\n",
}
MEMORY_V1 = {"memory.usage_in_bytes": "4096\n", "memory.limit_in_bytes": f"{HUGE}\n"}


def figures(reading: Reading) -> tuple[object, ...]:
    limits = (reading.cpu_limit_millicores, reading.memory_limit_bytes)
    return (reading.source, reading.cpu_usec, reading.memory_bytes, *limits)
