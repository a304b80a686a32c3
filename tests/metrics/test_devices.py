"""Block devices by the names that people know, from a sysfs that we write."""

from __future__ import annotations

from pathlib import Path

import pytest

from actscope.metrics.sources.devices import BlockDevices, mount_of

#: Directories and files of sysfs below /sys/devices/virtual/block, and links of class/block.
FILES = {
    "nvme0n1/mq/": "",
    "nvme0n1/inflight": "3 2",
    "nvme0n1/nvme0n1p3/partition": "3",
    "nvme0n1/nvme0n1p3/holders/dm-0/": "",
    "sda/mq/": "",
    "sda/sda1/partition": "1",
    "sda/sda1/holders/md0/": "",
    "sdb/mq/": "",
    "dm-0/dm/name": "luks-home",
    "dm-0/dm/uuid": "CRYPT-LUKS2-0123-luks-home",
    "dm-0/slaves/nvme0n1p3/": "",
    "dm-0/holders/dm-1/": "",
    "dm-1/dm/name": "vg-root",
    "dm-1/dm/uuid": "LVM-abc",
    "dm-1/slaves/dm-0/": "",
    "dm-2/dm/name": "mpatha",
    "dm-2/dm/uuid": "mpath-3600",
    "dm-2/slaves/sdb/": "",
    "md0/md/level": "raid1",
    "md0/slaves/sda1/": "",
    "md0/slaves/sdb/": "",
    "nvme1n1/size": "1",
    "nvme1c0n1/mq/": "",
    "nvme1c1n1/mq/": "",
    "loop0/mq/": "",
    "loop0/loop/backing_file": "/images/disk.img",
    "zram0/size": "1",
}


@pytest.fixture
def devices(tmp_path: Path) -> BlockDevices:
    real, links = tmp_path / "devices/virtual/block", tmp_path / "class/block"
    links.mkdir(parents=True)
    for name, text in FILES.items():
        path = real / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
    parts = [path.parent for path in real.rglob("partition")]
    for path in [*real.iterdir(), *parts]:
        (links / path.name).symlink_to(path)
    return BlockDevices(tmp_path, tmp_path / "proc")


@pytest.mark.parametrize(
    ("name", "kind", "label", "parents"),
    [
        ("nvme0n1", "disk", "", ()),
        ("nvme0n1p3", "partition", "", ("nvme0n1",)),
        ("dm-0", "crypt", "luks-home", ("nvme0n1p3",)),
        ("dm-1", "lvm", "vg-root", ("dm-0",)),
        ("dm-2", "mpath", "mpatha", ("sdb",)),
        ("md0", "raid", "raid1", ("sda1", "sdb")),
        ("nvme1n1", "disk", "", ("nvme1c0n1", "nvme1c1n1")),
        ("nvme1c0n1", "nvme-path", "", ()),
        ("loop0", "loop", "/images/disk.img", ()),
        ("zram0", "zram", "", ()),
        ("gone", "disk", "", ()),
    ],
)
def test_a_device_has_the_kind_the_name_and_the_parents_that_sysfs_tells(
    devices: BlockDevices, name: str, kind: str, label: str, parents: tuple[str, ...]
) -> None:
    device = devices.device(name)
    assert (device.kind, device.label, device.parents) == (kind, label, parents)


def test_a_partition_names_what_lies_on_it(devices: BlockDevices) -> None:
    assert devices.device("nvme0n1p3").holders == ("dm-0",)
    assert devices.device("dm-0").holders == ("dm-1",)


def test_only_devices_with_a_queue_have_requests_of_their_own(devices: BlockDevices) -> None:
    own = {name for name in devices.names() if devices.device(name).own_requests}
    assert own == {"nvme0n1", "nvme0n1p3", "sda", "sda1", "sdb", "nvme1c0n1", "nvme1c1n1", "loop0"}


def test_a_logical_volume_leads_down_to_its_disk(devices: BlockDevices) -> None:
    assert [one.name for one in devices.chain("dm-1")] == ["dm-1", "dm-0", "nvme0n1p3", "nvme0n1"]
    assert [one.name for one in devices.chain("md0")] == ["md0", "sda1", "sdb", "sda"]


def test_a_partition_is_found_by_its_number_also_when_it_is_gone(devices: BlockDevices) -> None:
    assert [devices.partition("nvme0n1", n) for n in (0, 3, 7)] == ["nvme0n1", "nvme0n1p3", "nvme0n1p7"]
    assert [devices.partition("sda", n) for n in (1, 2)] == ["sda1", "sda2"]


def test_requests_in_flight_are_reads_and_writes(devices: BlockDevices) -> None:
    assert (devices.in_flight("nvme0n1"), devices.in_flight("sda")) == (5, None)


def test_an_overlay_lies_on_the_device_of_its_upper_layer(devices: BlockDevices, tmp_path: Path) -> None:
    """st_dev of an overlay is no device's: mountinfo names the layers, and the upper one lies on a real file system."""
    upper, merged = tmp_path / "up per", tmp_path / "merged"
    for path in (upper, merged, tmp_path / "proc/self", tmp_path / "dev/block"):
        path.mkdir(parents=True)
    escaped = str(upper).replace(" ", "\\040")
    (tmp_path / "proc/self/mountinfo").write_text(
        "1 0 0:1 / / rw - tmpfs none rw\n"
        f"2 1 0:2 / {merged} rw - overlay overlay rw,lowerdir=/low,upperdir={escaped},workdir=/w\n"
        f"3 1 253:1 / {escaped} rw - btrfs /dev/dm-1 rw\n"
    )
    assert [one.name for one in devices.under(merged)] == ["dm-1", "dm-0", "nvme0n1p3", "nvme0n1"]
    assert devices.under(tmp_path) == []  # in memory
    mount = mount_of(merged / "a", tmp_path / "proc")
    assert mount is not None
    assert (mount.kind, mount.options["upperdir"]) == ("overlay", str(upper))


def test_the_device_of_this_directory_is_one_that_the_kernel_lists(tmp_path: Path) -> None:
    real = BlockDevices()
    chain = real.under(tmp_path)
    assert {one.name for one in chain} <= set(real.names())
