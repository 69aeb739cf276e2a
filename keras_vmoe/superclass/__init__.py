"""Super-classes: classes that a dense model takes for each other (Mobile V-MoE).

Networkx and scikit-learn are imported when communities are searched.
"""

from keras_vmoe.superclass.communities import METHODS as METHODS
from keras_vmoe.superclass.communities import find_communities as find_communities
from keras_vmoe.superclass.confusion import confusion_matrix as confusion_matrix
from keras_vmoe.superclass.confusion import inside_confusion as inside_confusion
from keras_vmoe.superclass.confusion import random_inside_confusion as random_inside_confusion
from keras_vmoe.superclass.confusion import row_shares as row_shares
from keras_vmoe.superclass.finding import NEIGHBOURS as NEIGHBOURS
from keras_vmoe.superclass.finding import central_classes as central_classes
from keras_vmoe.superclass.finding import find_superclasses as find_superclasses
from keras_vmoe.superclass.graph import confusion_graph as confusion_graph
from keras_vmoe.superclass.graph import connected_parts as connected_parts
from keras_vmoe.superclass.graph import modularity as modularity
from keras_vmoe.superclass.hierarchies import HIERARCHIES as HIERARCHIES
from keras_vmoe.superclass.hierarchies import hierarchy as hierarchy
from keras_vmoe.superclass.mapping import Superclasses as Superclasses
from keras_vmoe.superclass.mapping import from_names as from_names
from keras_vmoe.superclass.mapping import random_superclasses as random_superclasses
