"""Federated training: models travel, data stays where it is."""

from tauon.federated.messages import Failure, Message, MessageError, Site, Transport

__all__ = ["Failure", "Message", "MessageError", "Site", "Transport"]
