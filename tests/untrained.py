"""Model cards of networks that tests make and do not train."""

from sinotherm.networks.primal_dual import PrimalDual
from sinotherm.networks.weights import GuardLimits, ModelCard, ValidRange


def card_of(network, **values):
    """Return the card of a network for radial data, without guard limits and within any range unless said otherwise."""
    family = "primal-dual" if isinstance(network, PrimalDual) else "paper"
    usual = {"name": "tiny", "geometry": "radial", "valid": ValidRange(), "guard": GuardLimits()}
    return ModelCard(network=family, sha256="", architecture=network.architecture.as_dict(), **(usual | values))
