"""What an adapter asks of a base, as a plan: read from configurations and headers, before any weight is."""

from modelyard.weights.merge.plan.planning import plan_adapter
from modelyard.weights.merge.plan.site import Added, Kind, Layout, Plan, Site

__all__ = ["Added", "Kind", "Layout", "Plan", "Site", "plan_adapter"]
