"""Publishing: what goes with a version when it leaves the yard.

`render_card` makes the model card. The package knows no hubs and no network.
"""

from modelyard.publish.cards import CardEdge, CardFacts, render_card

__all__ = ["CardEdge", "CardFacts", "render_card"]
