"""All faults, in the order of the table."""

from __future__ import annotations

from fault_kinds import daemons, repairs, scheduling, signals, storage

FAULTS = {
    fault.name: fault
    for module in (signals, scheduling, daemons, storage, repairs)
    for fault in module.FAULTS
}
