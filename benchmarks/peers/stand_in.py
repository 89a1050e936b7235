"""Imported before timm: lets the pure-Python half of torchvision, which is all that timm needs here, be imported
beside a build of torch that its compiled half does not match.
"""

import sys
import types

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
