"""Hosts written down as files: what is below /sys and /proc on machines of several kinds."""

from __future__ import annotations

from pathlib import Path

BAT, AC = "sys/class/power_supply/BAT0/", "sys/class/power_supply/AC/"
ZONE = "sys/class/thermal/thermal_zone"
RAPL = "sys/class/powercap/intel-rapl:0/"
CPU = "sys/devices/system/cpu/cpu"
PSI = "some avg10={} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"

LAPTOP = {
    BAT + "type": "Battery\n", BAT + "status": "Discharging\n", BAT + "capacity": "71\n", BAT + "power_now": "9500000\n",
    BAT + "energy_full": "50000000\n", AC + "type": "Mains\n", AC + "online": "0\n",
    "sys/class/power_supply/hidpp_battery_0/type": "Battery\n", "sys/class/power_supply/hidpp_battery_0/scope": "Device\n",
    "sys/class/power_supply/hidpp_battery_0/capacity": "3\n", "sys/class/power_supply/hidpp_battery_0/status": "Discharging\n",
    ZONE + "0/type": "acpitz\n", ZONE + "0/temp": "27800\n", ZONE + "0/trip_point_0_type": "critical\n",
    ZONE + "0/trip_point_0_temp": "105000\n",
    ZONE + "1/type": "x86_pkg_temp\n", ZONE + "1/temp": "83000\n", ZONE + "1/trip_point_0_type": "passive\n",
    ZONE + "1/trip_point_0_temp": "95000\n", ZONE + "1/trip_point_1_type": "active\n", ZONE + "1/trip_point_1_temp": "50000\n",
    ZONE + "2/type": "iwlwifi_1\n", ZONE + "2/temp": "92000\n",
    RAPL + "name": "package-0\n", RAPL + "energy_uj": "1000000\n", RAPL + "max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n", "sys/class/powercap/intel-rapl:0:0/energy_uj": "900000\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n", "sys/class/powercap/intel-rapl:1/energy_uj": "5000000\n",
    CPU + "0/thermal_throttle/core_throttle_count": "4\n", CPU + "0/thermal_throttle/package_throttle_count": "9\n",
    CPU + "0/cpufreq/scaling_cur_freq": "2000000\n", CPU + "0/cpufreq/cpuinfo_max_freq": "4000000\n",
    "proc/pressure/cpu": PSI.format("12.50"), "proc/pressure/memory": PSI.format("0.00"), "proc/pressure/io": PSI.format("1.00"),
    "proc/self/cgroup": "0::/user.slice/poise.service\n",
    "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/user.slice/cpu.stat": "usage_usec 5\nnr_periods 100\nnr_throttled 10\nthrottled_usec 3\n",
    "sys/fs/cgroup/user.slice/poise.service/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/poise.service/memory.pressure": PSI.format("33.00"),
}  # fmt: skip
AMD = {
    "sys/class/hwmon/hwmon0/name": "k10temp\n", "sys/class/hwmon/hwmon0/temp1_input": "61500\n",
    "sys/class/hwmon/hwmon1/name": "nvme\n", "sys/class/hwmon/hwmon1/temp1_input": "70000\n",
    "sys/class/hwmon/hwmon1/temp1_crit": "84000\n",
    RAPL + "name": "package-0\n", RAPL + "energy_uj": "65000000\n", RAPL + "max_energy_range_uj": "65532610987\n",
}  # fmt: skip
PI = {
    ZONE + "0/type": "cpu-thermal\n", ZONE + "0/temp": "79388\n", ZONE + "0/trip_point_0_type": "hot\n",
    ZONE + "0/trip_point_0_temp": "80000\n", ZONE + "0/trip_point_1_type": "critical\n", ZONE + "0/trip_point_1_temp": "110000\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    CPU + "0/cpufreq/scaling_cur_freq": "1500000\n", CPU + "0/cpufreq/cpuinfo_max_freq": "2400000\n",
}  # fmt: skip
CONTAINER = {
    "proc/self/cgroup": "5:cpu,cpuacct:/docker/x/in\n0::/\n",
    "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/docker/x/cpu.stat": "nr_periods 1178\nnr_throttled 1174\nthrottled_time 9\n",
    "sys/fs/cgroup/cpu/docker/x/in/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/docker/x/in/cpu.cfs_period_us": "100000\n",
}  # fmt: skip
VM = {"proc/pressure/cpu": PSI.format("0.00")}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
