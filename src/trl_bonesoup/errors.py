"""What can go wrong, as one small hierarchy; each class is also the built-in error a caller expects."""


class BoneSoupError(Exception):
    """Base of every error that trl-bonesoup raises on purpose."""


class WeightsError(BoneSoupError, ValueError):
    """Combination weights, a preference or an extrapolation that the mathematics does not allow."""


class ManifestError(BoneSoupError, ValueError):
    """A soup.json that is missing, unreadable, of another format version, or inconsistent."""


class RewardError(BoneSoupError, RuntimeError):
    """A reward function that raised or returned something that is not one finite score per sample."""


class TrainingError(BoneSoupError, RuntimeError):
    """Training that cannot go on: a gradient or weights that are not finite, or too little memory."""


class EndpointError(BoneSoupError, RuntimeError):
    """An endpoint that refused a request, or gave no reply however often it was asked."""


class HubError(BoneSoupError, RuntimeError):
    """An upload or download that the Hub refused or that broke off; the message says what is kept and what to do."""


class ConfigurationError(BoneSoupError, ValueError):
    """Settings that contradict each other or the inputs; raised before any long work starts."""


class SoupError(BoneSoupError, ValueError):
    """Backbones that cannot be merged exactly, or an output folder that must not be touched."""


class FrontError(BoneSoupError, ValueError):
    """Rewards, preferences or a reference point from which no front can be computed."""


class DependencyError(BoneSoupError, ImportError):
    """A missing or untested dependency; the message says what to install."""


class LargeCoefficientsWarning(UserWarning):
    """The merging coefficients are so large that they amplify the backbones' noise."""
