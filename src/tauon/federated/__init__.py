"""Federated training: models travel, data stays where it is."""

from tauon.federated.messages import Failure, Message, MessageError, Site, Transport
from tauon.federated.secagg import SecureSettings, SecureSite, Session, secure_sum

__all__ = ["Failure", "Message", "MessageError", "SecureSettings", "SecureSite", "Session", "Site", "Transport", "secure_sum"]
