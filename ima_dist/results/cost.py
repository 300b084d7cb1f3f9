"""What a run has cost, in words and numbers."""

from typing import Any

#: Columns of the data set; the unit is in the name.
COLUMNS = ("gpu_hours", "cpu_hours", "energy_kwh", "gpu_utilisation", "peak_device_gb", "peak_host_gb", "waiting_share")


def cost_numbers(cost: dict[str, Any] | None) -> dict[str, float | None]:
    """The columns for ``cost`` of summary.json; None for what was not measured, and all None for an older run."""
    if not cost:
        return dict.fromkeys(COLUMNS)
    energy = [cost[name] for name in ("gpu_joules", "cpu_joules") if cost.get(name) is not None]
    busy, on_cards = cost.get("gpu_busy"), cost.get("gpu_seconds") or 0.0
    return {
        "gpu_hours": on_cards / 3600,
        "cpu_hours": cost["cpu_seconds"] / 3600,
        "energy_kwh": sum(energy) / 3.6e6 if energy else None,
        "gpu_utilisation": busy / on_cards if busy is not None and on_cards else None,
        "peak_device_gb": cost["peak_device_bytes"] / 1e9 if on_cards else None,
        "peak_host_gb": cost["peak_host_bytes"] / 1e9,
        "waiting_share": cost["waiting_seconds"] / max(cost["worker_seconds"], 1e-9),
    }


def total(numbers: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The cost of several runs together: hours and energy are added; None where no run has a value."""
    sums = {}
    for name in ("gpu_hours", "cpu_hours", "energy_kwh"):
        known = [value for one in numbers if (value := one[name]) is not None]
        sums[name] = sum(known) if known else None
    return sums


def cost_text(numbers: dict[str, float | None]) -> str:
    """One line, such as "0.4 GPU-hours, 0.5 CPU-hours, 0.1 kWh, cards at work 87 %"; "" if nothing is known."""
    words = {
        "gpu_hours": "{:.2g} GPU-hours",
        "cpu_hours": "{:.2g} CPU-hours",
        "energy_kwh": "{:.2g} kWh",
        "gpu_utilisation": "cards at work {:.0%}",
        "peak_device_gb": "at most {:.2g} GB of a card",
        "peak_host_gb": "{:.2g} GB of memory per worker",
        "waiting_share": "{:.0%} waiting for data",
    }
    parts = [words[name].format(value) for name, value in numbers.items() if value is not None and name in words]
    # Nobody asks for the cards of a run without any, nor for waiting where samples lie in memory.
    return ", ".join(part for part in parts if not part.startswith(("0 GPU", "0% waiting"))).replace("%", " %")
